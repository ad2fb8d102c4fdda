"""The host side of the Triton kernels: splits, shapes and refusals; no kernel runs here."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels_for_tests import make_query, make_view, naive
from kvgauge_kernels import BACKENDS, KVView, oracle_prefill
from kvgauge_kernels.audit.cases import PACKED, default_cases
from kvgauge_kernels.audit.elf import code_hash
from kvgauge_kernels.stored import stored_as
from kvgauge_kernels.torch_prefill import prefill_by_torch
from kvgauge_kernels.triton import configs, launch
from kvgauge_kernels.triton import lengths as device_lengths
from kvgauge_kernels.triton.configs import Room, choose, padded, tile_row_bytes
from kvgauge_kernels.triton.splits import chunk_tokens, split_count
from triton_for_tests import elf, needs_triton

TRITON = BACKENDS["triton"]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

lengths = st.lists(st.integers(1, 200_000), min_size=1, max_size=6).map(tuple)


@given(lengths, st.integers(1, 64), st.integers(1, 600), st.sampled_from([16, 32, 64]))
@settings(max_examples=200, deadline=None)
def test_chunks_are_whole_blocks_and_cover_every_token(
    lengths: tuple[int, ...], heads: int, at_once: int, block_n: int
) -> None:
    chunk = chunk_tokens(lengths, heads, at_once, block_n)
    assert chunk % block_n == 0
    assert 0 < chunk < max(lengths) + block_n
    assert split_count(max(lengths), chunk) * chunk >= max(lengths)


@given(lengths, st.integers(1, 64), st.integers(16, 600))
@settings(max_examples=100, deadline=None)
def test_no_other_chunk_of_few_rounds_is_much_faster(
    lengths: tuple[int, ...], heads: int, at_once: int
) -> None:
    """By the model's own words: rounds of programs, each as long as its chunk and what a program costs."""

    def seconds(chunk: int) -> int:
        programs = heads * sum(-(-n // chunk) for n in lengths)
        return -(-programs // at_once) * (chunk + 128)

    longest = -(-max(lengths) // 64) * 64
    every = (seconds(64 * blocks) for blocks in range(1, longest // 64 + 1))
    # More rounds than are tried never gain more than the tail of one.
    assert seconds(chunk_tokens(lengths, heads, at_once, 64)) <= 1.25 * min(every) + 64


@pytest.mark.parametrize(
    ("lengths", "heads", "at_once", "programs"),
    [
        ((100_000,), 8, 264, 264),  # one long trace fills the device once
        ((16_384,) * 16, 8, 264, 256),  # 128 pairs of sequence and head: two chunks each
        ((500,) * 264, 1, 264, 264),  # enough pairs: nothing is split
    ],
)
def test_chunks_fill_the_device(
    lengths: tuple[int, ...], heads: int, at_once: int, programs: int
) -> None:
    chunk = chunk_tokens(lengths, heads, at_once, 64)
    made = heads * sum(-(-n // chunk) for n in lengths)
    rounds = -(-made // at_once)
    assert 0.95 * programs <= made / rounds <= at_once


@pytest.mark.parametrize(("dim", "power"), [(1, 16), (16, 16), (80, 128), (128, 128), (192, 256)])
def test_padded_is_the_next_power_of_two(dim: int, power: int) -> None:
    assert padded(dim) == power


@pytest.mark.parametrize("element_bytes", [1, 2])
@pytest.mark.parametrize("dims", [(16, 16), (64, 64), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize("capability", configs.SHARED_BYTES)
def test_the_tiles_of_all_programs_fit_into_shared_memory(
    capability: int, dims: tuple[int, int], element_bytes: int
) -> None:
    """Tiles on their way are `stages - 1` of K and V as stored; int8 V once more in 16 bits."""
    room = Room(configs.SHARED_BYTES[capability])
    config = choose(room, tile_row_bytes(*dims, element_bytes), paged=False)
    rows = sum(map(padded, dims)) * element_bytes * (config.num_stages - 1)
    rows += padded(dims[1]) * 2 if element_bytes == 1 else 0
    used = config.programs_per_sm * config.block_n * rows
    assert used < 0.95 * room.shared_bytes
    assert config.max_registers * config.num_warps * 32 * config.programs_per_sm <= 65_536


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("capability", configs.SHARED_BYTES)
def test_the_tiles_of_latents_fit_into_shared_memory(capability: int, paged: bool) -> None:
    """Beside those on their way the 16 queries, which both products read from there."""
    room = Room(configs.SHARED_BYTES[capability])
    config = configs.choose_for(room, "bf16", 576, 512, paged=paged)
    on_their_way = config.num_stages - 1 - (2 if paged else 0)
    used = config.programs_per_sm * 576 * 2 * (config.block_n * on_their_way + configs.ROWS)
    assert used < 0.95 * room.shared_bytes
    assert config.max_registers * config.num_warps * 32 * config.programs_per_sm <= 65_536


def test_pages_take_more_stages_and_no_row_is_too_long() -> None:
    room = Room(configs.SHARED_BYTES[90])
    flat, paged = (choose(room, 512, paged=p) for p in (False, True))
    assert paged == replace(flat, num_stages=flat.num_stages + 2)
    assert choose(Room(65_536, "hip"), 512, paged=True).num_stages == 2
    with pytest.raises(ValueError, match="at most 1024"):
        choose(room, 1025, paged=False)


def test_available_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in str(TRITON.available(CUDA))
    assert "not on mps" in str(TRITON.available(torch.device("mps")))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert "package triton is absent" in str(TRITON.available(CPU))
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "compute capability 7.5" in str(TRITON.available(CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert TRITON.available(CUDA) is None


@needs_triton
def test_on_a_cpu_by_the_interpreter_alone() -> None:
    assert "under TRITON_INTERPRET=1 alone" in str(TRITON.available(CPU))
    view = make_view("fp16")
    with pytest.raises(ValueError, match="backend triton: these kernels run on a GPU"):
        TRITON.decode(make_query(view, 2, torch.float16), view)


@pytest.mark.parametrize(
    ("view", "dtype", "reason"),
    [
        (make_view("fp16"), torch.float16, None),
        (make_view("int8"), torch.bfloat16, None),
        (make_view("fp16", k_dim=192, v_dim=128), torch.float16, None),
        (make_view("fp8_e4m3"), torch.bfloat16, None),
        (make_view("int4-g32"), torch.bfloat16, None),
        (replace(make_view("int2"), window=9, sink_tokens=2), torch.float16, None),
        (
            make_view("int4-g48"),
            torch.float16,
            "groups of 48: triton takes 32, 64, 128",
        ),
        (make_view("int2-g16"), torch.float16, "groups of 16: triton takes 32, 64, 128"),
        (
            make_view("int4", k_dim=80),
            torch.float16,
            "int4 of head dims 80/80 (K/V): triton takes 64/64",
        ),
        (make_view("int2", k_dim=96), torch.float16, "int2 of head dims 96/96"),
        (make_view("fp32"), torch.float32, "format fp32: it reads bf16, fp16, fp8_e4m3"),
        (make_view("fp16"), torch.bfloat16, "a cache of float16 with queries of bfloat16"),
        (make_view("fp16", k_dim=72), torch.float16, "head_dim 72"),
        (make_view("fp16", k_dim=272), torch.float16, "up to 256"),
        (make_view("int8"), torch.float32, "queries of torch.float32"),
    ],
)
def test_supports(view: KVView, dtype: torch.dtype, reason: str | None) -> None:
    said = TRITON.supports(view, dtype)
    assert said is None if reason is None else reason in str(said)


def latents(fmt: str, k_dim: int, v_dim: int) -> KVView:
    view = make_view(fmt, k_dim=k_dim)
    return replace(view, v=view.k[..., :v_dim], v_scale=view.k_scale)


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (latents("fp16", 576, 512), None),
        (latents("fp16", 80, 64), None),  # by the kernel of all others
        (latents("fp16", 528, 512), "latents of 528 of which 512 are V: triton takes 576 of which"),
        (latents("fp16", 1088, 1024), "latents of 1088"),
        (latents("int8", 576, 512), "latents of int8: .* spill"),
        (latents("fp8_e4m3", 576, 512), "latents of fp8_e4m3: .* spill"),
        (replace(latents("fp16", 576, 512), window=9), "a sliding window over latents"),
        (make_view("fp16", k_dim=576, v_dim=512), "head_dim 576: .* where V is no part of K"),
    ],
)
def test_supports_of_latents(view: KVView, reason: str | None) -> None:
    said = TRITON.supports(view, torch.float16)
    assert said is None if reason is None else re.search(reason, str(said))


def test_int8_rows_must_start_at_whole_words() -> None:
    view = make_view("int8")
    wide = torch.zeros(*view.v.shape[:3], 67, dtype=torch.int8)
    assert "no multiple of 4 bytes" in str(
        TRITON.supports(replace(view, v=wide[..., :64]), torch.float16)
    )
    assert view.k_scale is not None
    other = replace(view, k_scale=view.k_scale.float())
    assert "zero points of float16" in str(TRITON.supports(other, torch.float16))


def test_packed_rows_and_their_scales_must_lie_as_the_kernel_reads_them() -> None:
    view = make_view("int4-g32")
    wide = torch.zeros(*view.k.shape[:3], 44, dtype=torch.uint8)
    assert "no multiple of 16 bytes" in str(
        TRITON.supports(replace(view, k=wide[..., :32]), torch.float16)
    )
    assert view.k_zero is not None
    assert view.k_scale is not None
    apart = torch.zeros(*view.k_zero.shape[:3], 3, dtype=torch.float16)[..., :2]
    assert "lie otherwise" in str(TRITON.supports(replace(view, k_zero=apart), torch.float16))
    loose = torch.zeros(*view.k_zero.shape, 2, dtype=torch.float16)[..., 0]
    both = replace(view, k_zero=loose, k_scale=loose)
    assert "do not touch" in str(TRITON.supports(both, torch.float16))


@pytest.mark.parametrize("base", ["int4", "int2"])
def test_whatever_packed_rows_are_taken_has_audited_cases(base: str) -> None:
    audited = {
        (stored_as(case.format), case.k_dim, case.v_dim, case.page_size > 0)
        for case in default_cases()
        if case.kernel == PACKED
    }
    taken = 0
    for group in (4, 8, 16, 32, 48, 64, 96, 128, 256):
        for k_dim in range(16, 272, 16):
            for v_dim in {16, 64, 128, k_dim}:
                view = make_view(f"{base}-g{group}", k_dim=k_dim, v_dim=v_dim, tokens=2)
                if TRITON.supports(view, torch.bfloat16) is None:
                    taken += 1
                    assert (stored_as(view.format), k_dim, v_dim, True) in audited
    assert taken == {"int4": 15, "int2": 9}[base]


@pytest.mark.parametrize("fmt", ["int4", "int2", "int2-g32"])
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (256, 256)])
@pytest.mark.parametrize(
    "room", [*map(Room, set(configs.SHARED_BYTES.values())), Room(65_536, "hip")]
)
def test_a_tile_of_codes_has_16_bytes_for_every_thread(
    fmt: str, dims: tuple[int, int], room: Room
) -> None:
    config = configs.choose_for(room, fmt, *dims, paged=False)
    bits = 4 if fmt == "int4" else 2
    threads = config.num_warps * (64 if room.backend == "hip" else 32)
    assert config.block_n * dims[0] * bits // 8 >= 16 * threads
    assert config.block_n & (config.block_n - 1) == 0


def test_prefill_is_torchs_over_either_layout() -> None:
    view = make_view("int8", k_dim=64, v_dim=32, lengths=(9, 40))
    q = make_query(view, 2, torch.float32, 5)
    assert torch.allclose(prefill_by_torch(q, view).double(), naive(q, view), atol=1e-4)
    table = torch.tensor([[1, 0]], dtype=torch.int32)
    paged = replace(make_view("bf16"), layout="paged", page_size=40, block_table=table)
    q = make_query(paged, 2, torch.bfloat16, 5)
    out = prefill_by_torch(q, paged)
    assert torch.allclose(out.double(), oracle_prefill(q, paged), atol=3e-2)
    with pytest.raises(ValueError, match="must be"):
        TRITON.prefill(torch.zeros(3, 4, 2, 64), view)


def test_shapes_and_dtypes_on_a_gpu_without_one() -> None:
    """Under FakeTensorMode: what torch.compile and a CUDA device's shapes rest on."""
    with FakeTensorMode():
        q = torch.empty(3, 8, 192, dtype=torch.bfloat16, device="cuda")
        k = torch.empty(9, 2, 16, 192, dtype=torch.bfloat16, device="cuda")
        v = torch.empty(9, 2, 16, 128, dtype=torch.bfloat16, device="cuda")
        table = torch.empty(3, 5, dtype=torch.int32, device="cuda")
        out = torch.ops.kvgauge.triton_decode(
            q, k, v, None, None, None, None, table, [70, 8, 80], "bf16", None, 0
        )
        part, sums = torch.ops.kvgauge.triton_decode_part(
            q, k, v, None, None, None, None, table, [70, 8, 80], "bf16", None, 0
        )
    assert (out.shape, out.dtype, out.device.type) == ((3, 8, 128), torch.bfloat16, "cuda")
    assert (part.shape, part.dtype, sums.shape) == ((3, 8, 128), torch.float32, (3, 8))


def test_shapes_of_latents_without_a_gpu() -> None:
    with FakeTensorMode():
        q = torch.empty(2, 20, 576, dtype=torch.float16, device="cuda")
        k = torch.empty(2, 1, 50, 576, dtype=torch.float16, device="cuda")
        v = torch.empty(2, 1, 50, 512, dtype=torch.float16, device="cuda")
        rest = (None, None, None, None, None, None, "fp16", None, 0)
        out = torch.ops.kvgauge.triton_decode(q, k, v, *rest)
        part, sums = torch.ops.kvgauge.triton_decode_part(q, k, v, *rest)
    assert (out.shape, out.dtype, out.device.type) == ((2, 20, 512), torch.float16, "cuda")
    assert (part.shape, part.dtype, sums.shape) == ((2, 20, 512), torch.float32, (2, 20))


def test_the_package_imports_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import kvgauge_kernels as k; print(k.BACKENDS['triton'].name)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root / "kernels", capture_output=True, text=True
    )
    assert done.stdout == "triton\n", done.stderr


@needs_triton
def test_the_version_names_the_machine_code_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record measured on a GPU can then be held against the audit's limits."""
    monkeypatch.setattr(launch, "_last", None)
    monkeypatch.setattr(launch, "_last_kernel", "split_decode")  # whatever ran before
    assert "code" not in TRITON.version()
    binary = elf({".text.split_decode": b"\1\2\3"})
    monkeypatch.setattr(launch, "_last", SimpleNamespace(asm={"cubin": binary}))
    assert TRITON.version().endswith(f", code {code_hash(binary, 'split_decode')[:16]}")


def test_a_graph_keeps_the_lengths_that_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays read them after any number of other lengths."""
    kept = torch.tensor([3, 5], dtype=torch.int32)
    monkeypatch.setattr(device_lengths, "_copied", lambda _lengths, _device: (kept, None))
    monkeypatch.setattr(device_lengths, "_of_graphs", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert device_lengths.on_device((3, 5), torch.device("cuda")) is kept
    monkeypatch.setattr(device_lengths, "_copied", None)  # whatever is kept there is gone
    assert [x is kept for x in device_lengths._of_graphs.values()] == [True]
