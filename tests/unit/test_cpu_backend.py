"""The native backends: what they say, what they refuse, and the scores that are hard."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels_for_tests import error, make_query, make_view, observed
from kvgauge_kernels import BACKENDS, KVView, decode, oracle_decode
from kvgauge_kernels.cpu import backend as cpu_module
from kvgauge_kernels.cpu.native_module import native

CPU = torch.device("cpu")
NATIVE = native()
built = pytest.mark.skipif(NATIVE is None, reason="the native kernels are not built")


def test_where_it_is_not_built_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_module, "instructions", lambda: None)
    view = make_view("bf16")
    for name in ("cpu", "cpu-q8"):
        assert "not built: pip install ." in str(BACKENDS[name].available(CPU))
        with pytest.raises(ImportError, match="not built"):
            BACKENDS[name].version()
    with pytest.raises(ValueError, match="backend cpu: the native CPU kernels are not built"):
        decode(make_query(view, 2, torch.bfloat16), view, "cpu")


def test_it_runs_on_the_cpu_alone() -> None:
    assert "not on cuda" in str(BACKENDS["cpu"].available(torch.device("cuda")))


@built
def test_version_names_the_instructions(level: str) -> None:
    assert BACKENDS["cpu"].version().startswith("kvgauge ")
    assert BACKENDS["cpu"].version().endswith(f", {level}")


@pytest.mark.parametrize(
    ("name", "view", "dtype", "message"),
    [
        ("cpu", make_view("fp16"), torch.float32, "cache of float16 with queries of float32"),
        ("cpu", make_view("fp32", k_dim=24), torch.float32, "head_dim 24"),
        ("cpu", make_view("fp32", k_dim=64, v_dim=592), torch.float32, "head_dim 592"),
        ("cpu", make_view("fp32", k_dim=64, v_dim=128), torch.float32, None),
        ("cpu", make_view("int8"), torch.float64, "queries of torch.float64"),
        ("cpu-q8", make_view("fp16"), torch.float16, "format fp16: it reads int2, int4, int8"),
        ("cpu", make_view("int8"), torch.float32, None),
    ],
)
def test_supports(name: str, view: KVView, dtype: torch.dtype, message: str | None) -> None:
    reason = BACKENDS[name].supports(view, dtype)
    assert reason is None if message is None else message in str(reason)


def test_8_bits_need_the_instructions(level: str) -> None:
    q8 = BACKENDS["cpu-q8"]
    reason = q8.supports(make_view("int8"), torch.float16)
    assert reason is None if level == "avx512" else f"not {level}" in str(reason)


def test_scales_of_another_dtype_are_refused() -> None:
    view = make_view("int8")
    assert view.k_scale is not None
    wide = replace(view, k_scale=view.k_scale.float())
    assert "scales and zero points of float16" in str(BACKENDS["cpu"].supports(wide, torch.float32))


@pytest.mark.parametrize("group", [16, 17, 32, 128])
def test_any_number_of_query_heads_to_a_head(level: str, group: int) -> None:
    view = make_view("fp32", tokens=70)
    q = make_query(view, group, torch.float32)
    assert error(BACKENDS["cpu"].decode(q, view), oracle_decode(q, view)) < 1e-5


def paged(view: KVView, size: int) -> KVView:
    """The same cache in pages, in the reverse order."""
    count = -(-view.tokens // size)
    table = torch.arange(view.batch * count, dtype=torch.int32).flip(0).view(view.batch, count)

    def pool(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(view.batch * count, view.kv_heads, size, *x.shape[3:], dtype=x.dtype)
        for b in range(view.batch):
            for i in range(count):
                part = x[b, :, i * size : (i + 1) * size]
                out[int(table[b, i]), :, : part.shape[1]] = part
        return out

    return KVView(
        pool(view.k),
        pool(view.v),
        view.format,
        None if view.k_scale is None else pool(view.k_scale),
        None if view.v_scale is None else pool(view.v_scale),
        view.lengths or (view.tokens,) * view.batch,
        "paged",
        size,
        table,
    )


def test_the_oracle_reads_pages() -> None:
    for fmt in ("fp32", "int8"):
        view = make_view(fmt, lengths=(7, 40))
        q = make_query(view, 2, torch.float32)
        for size in (1, 7, 16):
            assert torch.equal(oracle_decode(q, paged(view, size)), oracle_decode(q, view))


@built
def test_a_page_that_is_not_there_is_refused() -> None:
    view = paged(make_view("fp32"), 16)
    assert view.block_table is not None
    q = make_query(view, 2, torch.float32)
    for page in (-1, view.k.shape[0]):
        table = view.block_table.clone()
        table[1, 2] = page
        with pytest.raises(ValueError, match="a page that is not there"):
            BACKENDS["cpu"].decode(q, replace(view, block_table=table))
        short = replace(view, block_table=table, lengths=(40, 32))
        assert BACKENDS["cpu"].decode(q, short).isfinite().all()


@built
@pytest.mark.parametrize("fmt", ["bf16", "int8"])
def test_prefill_is_that_of_torch_over_both_layouts(fmt: str) -> None:
    view = make_view(fmt, lengths=(20, 40))
    q = make_query(view, 2, torch.bfloat16, 5)
    expected = BACKENDS["reference"].prefill(q, view).double()
    for each in (view, paged(view, 16)):
        out, seen = observed(lambda v=each: BACKENDS["cpu"].prefill(q, v))  # type: ignore[misc]
        assert error(out, expected) < 4e-2
        assert "kvgauge::cpu_decode" not in seen


@built
def test_the_operator_is_seen_and_has_a_fake() -> None:
    view = make_view("fp16")
    q = make_query(view, 4, torch.float16)
    out, seen = observed(lambda: BACKENDS["cpu"].decode(q, view))
    assert "kvgauge::cpu_decode" in seen
    none = (None,) * 6
    fake = torch.ops.kvgauge.cpu_decode(
        q.to("meta"), view.k.to("meta"), view.v.to("meta"), *none, "fp16", 16, 0, 0
    )
    assert (fake.shape, fake.dtype) == (out.shape, out.dtype)
    with pytest.raises(ValueError, match="tensors of several devices: cpu, meta"):
        torch.ops.kvgauge.cpu_decode(q, view.k.to("meta"), view.v, *none, "fp16", 16, 0, 0)


@pytest.mark.parametrize("k_dim", [16, 48, 64, 128, 576])
@pytest.mark.parametrize("group", [1, 2, 3, 16])
def test_of_bf16_queries_and_keys_nothing_is_rounded(level: str, k_dim: int, group: int) -> None:
    """Two tokens whose scores differ by the last bit of a query, and V of 1 and -1."""
    k = torch.randn(3, 2, 1, k_dim, generator=torch.Generator().manual_seed(0)).repeat(1, 1, 2, 1)
    k[..., [0, -1]] = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])
    v = torch.ones(3, 2, 2, 16)
    v[..., 1, :] = -1
    view = KVView(k.bfloat16(), v.bfloat16(), "bf16")
    q = make_query(view, group, torch.bfloat16)
    q[..., [0, -1]] = torch.tensor([1.0, 1.0078125], dtype=torch.bfloat16)
    expected = oracle_decode(q, view)
    assert 0 < expected.abs().max() < 5e-3
    difference = (BACKENDS["cpu"].decode(q, view).double() - expected).abs() / expected.abs()
    assert difference.max() < 5e-3  # bf16 has 8 bits


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [30.0, 1e4, 1e18])
def test_huge_scores(level: str, dtype: str, size: float) -> None:
    view = make_view(dtype, tokens=200)
    q = make_query(view, 3, view.k.dtype) * size
    limit = 1e-3 if dtype == "fp32" else 8e-3
    assert error(BACKENDS["cpu"].decode(q, view), oracle_decode(q, view)) < limit


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scores_of_minus_infinity_weigh_nothing(level: str, dtype: str) -> None:
    """Whole blocks of them come first."""
    view = make_view(dtype, tokens=300)
    q = torch.ones(2, 4, 64).to(view.k.dtype)
    view.k[:, :, :250, 0] = float("-inf")
    out = BACKENDS["cpu"].decode(q, view)
    assert error(out, oracle_decode(q, view)) < (1e-5 if dtype == "fp32" else 8e-3)
    view.k[..., 0] = float("-inf")
    assert BACKENDS["cpu"].decode(q, view).isnan().all()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_a_nan_of_a_valid_token_is_in_the_result(level: str, dtype: str, where: str) -> None:
    view = make_view(dtype, tokens=100)
    q = make_query(view, 2, view.k.dtype)
    {"q": q[0], "k": view.k[0, 0, 77], "v": view.v[0, 0, 77]}[where].fill_(float("nan"))
    out = BACKENDS["cpu"].decode(q, view)
    assert out[0, :2].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("name", ["cpu", "cpu-q8"])
def test_int8_scales_below_zero_and_at_the_ends(level: str, name: str) -> None:
    if name == "cpu-q8" and level != "avx512":
        pytest.skip("cpu-q8 is for AVX-512")
    view = make_view("int8", tokens=100)
    assert view.k_scale is not None
    assert view.v_scale is not None
    view.v_scale[:, :, 3] *= -1
    view.k_scale[:, :, 5] = 0
    view.v_scale[:, :, 7] = 6e-8
    view.k[:, :, 9] = -128
    view.v[:, :, 9] = -128
    q = make_query(view, 5, torch.float32)
    limit = 1e-3 if name == "cpu" else 3e-2
    assert error(BACKENDS[name].decode(q, view), oracle_decode(q, view)) < limit


@pytest.mark.parametrize("name", ["cpu", "cpu-q8"])
def test_int8_with_a_query_of_nan_or_of_zeros(level: str, name: str) -> None:
    if name == "cpu-q8" and level != "avx512":
        pytest.skip("cpu-q8 is for AVX-512")
    view = make_view("int8", tokens=100)
    q = make_query(view, 2, torch.float32)
    q[0, 0, 3] = float("nan")
    q[1, 0] = 0.0
    out = BACKENDS[name].decode(q, view)
    assert out[0, 0].isnan().all()
    assert out[0, 1:].isfinite().all()
    q[0, 0, 3] = 0.0
    assert error(BACKENDS[name].decode(q, view), oracle_decode(q, view)) < 3e-2


def test_a_paged_view_is_checked() -> None:
    view = make_view("fp16")
    table = torch.zeros(2, 3, dtype=torch.int32)
    good = {"layout": "paged", "page_size": 40, "block_table": table}
    assert KVView(view.k, view.v, "fp16", **good).tokens == 120  # type: ignore[arg-type]
    for wrong, message in (
        ({"block_table": None}, "needs a block_table"),
        ({"block_table": table.long()}, "int32"),
        ({"page_size": 16}, "page_size 16"),
        ({"page_size": None}, "page_size None"),
        ({"layout": "ragged"}, "contiguous or paged"),
        ({"layout": "contiguous"}, "no block table"),
    ):
        with pytest.raises(ValueError, match=message):
            KVView(view.k, view.v, "fp16", **{**good, **wrong})  # type: ignore[arg-type]


@built
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": torch.ones(1, 6, 64)}, "is not of a cache"),  # 6 query heads over 4
        ({"q": torch.ones(1, 4, 80)}, "is not of a cache"),
        ({"q": torch.ones(1, 4, 1, 64)}, "do not fit"),
        ({"q": torch.ones(2, 4, 64)}, "2 queries for 1 sequences"),
        ({"q": torch.ones(1, 4, 64).double()}, "no kernel for q torch.float64"),
        ({"k": torch.ones(1, 4, 9, 64).half()}, "no kernel for"),
        ({"v": torch.ones(1, 4, 8, 64)}, "do not fit"),
        ({"v": torch.ones(1, 4, 9, 128)[..., ::2]}, "next to each other"),
        ({"block_table": torch.zeros(1, 1)}, "int32"),
        ({"lengths": [10]}, "at most 9"),
        ({"kv_format": "int8"}, "no kernel for"),
        ({"kv_format": "q8_0"}, "no cache of format 'q8_0'"),
        ({"k_scale": torch.ones(1, 4, 9).half()}, "fp32 has no scales"),
        ({"v_zero": torch.ones(1, 4, 9, 1).half()}, "fp32 has no zero points"),
        ({"window": -1}, "window must not be negative"),
    ],
)
def test_the_operator_itself_reads_nothing_that_is_not_there(
    change: dict[str, Any], says: str
) -> None:
    cache = torch.ones(1, 4, 9, 64)
    given: dict[str, Any] = {
        "q": torch.ones(1, 4, 64), "k": cache, "v": cache, "k_scale": None, "v_scale": None,
        "k_zero": None, "v_zero": None, "block_table": None, "lengths": None,
        "kv_format": "fp32", "int_bits": 16, "window": 0, "sink_tokens": 0,
    }  # fmt: skip
    assert torch.equal(torch.ops.kvgauge.cpu_decode(**given), torch.ones(1, 4, 64))
    with pytest.raises(ValueError, match=says):
        torch.ops.kvgauge.cpu_decode(**{**given, **change})


@built
def test_no_sequences_and_no_heads() -> None:
    nothing = torch.ones(0, 2, 5, 64)
    view = KVView(nothing, nothing, "fp32", lengths=())
    for name in ("cpu", "eager", "sdpa-math", "sdpa-flash", "reference"):
        assert BACKENDS[name].decode(torch.ones(0, 4, 64), view).shape == (0, 4, 64), name
    with pytest.raises(ValueError, match=r"no tokens.*\[1, 2, 0, 64\]"):
        KVView(torch.ones(1, 2, 0, 64), torch.ones(1, 2, 0, 64), "fp32")
    headless = torch.ones(1, 0, 5, 64)
    with pytest.raises(ValueError, match="over 0 K/V heads"):
        BACKENDS["cpu"].decode(torch.ones(1, 4, 64), KVView(headless, headless, "fp32"))


ELSEWHERE = """
import os, sys, threading, torch
from kernels_for_tests import make_query, make_view
from kvgauge_kernels import BACKENDS
from kvgauge_kernels.cpu.native_module import native
view = make_view("fp32", tokens=3000)
q = make_query(view, 4, torch.float32)
expected = BACKENDS["reference"].decode(q, view)
def right():
    return bool(torch.allclose(BACKENDS["cpu"].decode(q, view), expected, atol=1e-4))
assert right()
"""


@built
@pytest.mark.parametrize(
    ("code", "variables"),
    [
        ("", {"OMP_PROC_BIND": "true"}),
        ("", {"KVGAUGE_OWN_THREADS": "1"}),
        # Torch's own threads hang in a forked child; ours are made there anew.
        (
            "child = os.fork()\nif child == 0: os._exit(0 if right() else 7)\n"
            "assert os.waitpid(child, 0)[1] == 0",
            {},
        ),
        (
            "torch.set_num_threads(1)\nseen = []\n"
            "def look(): right(); seen.append(native().thread_count())\n"
            "t = threading.Thread(target=look); t.start(); t.join(); assert seen == [1], seen",
            {},
        ),
    ],
    ids=["bound", "own threads", "a child", "torchs count"],
)
def test_threads_elsewhere(code: str, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2", **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("dim", [512, 528, 576])
def test_sums_of_the_largest_numbers_of_int8_fit(level: str, dim: int) -> None:
    """A flat query along flat rows: random numbers never come near."""
    codes = torch.full((1, 1, 20, dim), 127, dtype=torch.int8)
    scale = torch.full((1, 1, 20), 0.001, dtype=torch.float16)
    codes[0, 0, 3] = -127
    v = codes[..., :64].clone()
    view = KVView(codes, v, "int8", scale, scale)
    q = torch.ones(1, 2, dim)
    assert error(BACKENDS["cpu"].decode(q, view), oracle_decode(q, view)) < 1e-3


@pytest.mark.parametrize("fmt", ["int4", "int2"])
def test_groups_of_one_token_may_have_any_stride(level: str, fmt: str) -> None:
    view = make_view(fmt, tokens=1, k_dim=128)
    odd: dict[str, Any] = {}
    for name in ("k_scale", "v_scale", "k_zero", "v_zero"):
        side = getattr(view, name)
        odd[name] = torch.empty(*side.shape[:2], side.shape[3], 1).half().transpose(2, 3)
        odd[name].copy_(side)
    q = make_query(view, 2, torch.float32)
    expected = oracle_decode(q, view)
    assert error(BACKENDS["cpu"].decode(q, replace(view, **odd)), expected) < 1e-3


def test_heads_read_together_need_little_stack() -> None:
    """Its own thread, as small as a server's may be."""
    rows = torch.randint(-127, 128, (1, 300, 8, 576), dtype=torch.int8).transpose(1, 2)
    scale = torch.full((1, 8, 300), 0.01, dtype=torch.float16)
    view = KVView(rows, rows, "int8", scale, scale)
    q, found = torch.randn(1, 8, 576), []
    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=lambda: found.append(BACKENDS["cpu"].decode(q, view)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert error(found[0], oracle_decode(q, view)) < 1e-3
