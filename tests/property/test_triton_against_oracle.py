"""The Triton kernels under Triton's interpreter, against the oracle in float64.

The interpreter is chosen before triton is imported, so these tests run in a process of their own: this
module starts one for itself, which inside is collected whole, and one for each of the files that it names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from kernels_for_tests import assert_right_kernel, error, observed
from kvgauge.selftest.checks import run_checks
from kvgauge_kernels import BACKENDS, KVView, decode, oracle_decode
from kvgauge_kernels.stored import stored_as
from kvgauge_kernels.triton import configs, launch, tuned
from kvgauge_kernels.triton.configs import PACKED_DIMS, PACKED_GROUPS
from triton_for_tests import (
    INSIDE,
    TritonCase,
    filling,
    inside,
    needs_triton,
    new_interpreter,
    one_case,
    triton_cases,
)
from walls_for_tests import before_a_wall

pytestmark = [needs_triton, new_interpreter]
TRITON = BACKENDS["triton"]
# The interpreter rounds to bf16 towards zero, where a GPU rounds to the nearest: twice the error.
MAX_ERROR = {torch.float16: 1.5e-3, torch.bfloat16: 1.6e-2}
# In fp16 `code * scale` is rounded before `zero` is added; a GPU's fused instruction rounds once.
MAX_ERROR_OF_GROUPS = 2.5e-3

# Each in a process of its own.
OTHERS = ("test_triton_parts.py", "test_triton_latents.py", "test_triton_cache_ops.py")
ONE = one_case()
QUANTIZED = ("int8", "fp8_e4m3", "fp8_e5m2", "int4", "int4-g32", "int2", "int2-g128")


@pytest.mark.skipif(INSIDE, reason="this is the process that it starts")
@pytest.mark.parametrize("name", [Path(__file__).name, *OTHERS])
def test_in_a_process_with_the_interpreter(name: str) -> None:
    here = Path(__file__)
    root = here.parents[2]
    child = subprocess.run(
        [sys.executable, "-m", "pytest", str(here.with_name(name)), "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=root, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-8000:] + child.stderr[-2000:]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(case: TritonCase) -> None:
    """The output, and that it is this kernel's, on a device like the case's."""
    view, q = case.view(), case.query()
    assert TRITON.supports(view, q.dtype) is None
    compare(case, view, q, oracle_decode(q, view))


def compare(case: TritonCase, view: KVView, q: torch.Tensor, expected: torch.Tensor) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "processor", lambda _device: case.processor)
        out, seen = observed(lambda: TRITON.decode(q, view))
    assert_right_kernel(TRITON, seen)
    assert out.dtype == q.dtype
    assert out.shape == (view.batch, q.shape[1], view.v_dim)
    assert error(out, expected) <= max_error(case)


def max_error(case: TritonCase) -> float:
    grouped = stored_as(case.fmt).group is not None and case.q_dtype == torch.float16
    return MAX_ERROR_OF_GROUPS if grouped else MAX_ERROR[case.q_dtype]


@inside
@pytest.mark.parametrize("page_size", [None, 1, 16, 24, 64, 256])
@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        *((fmt, torch.float16) for fmt in QUANTIZED),
        *((fmt, torch.bfloat16) for fmt in QUANTIZED),
    ],
)
def test_every_format_in_every_layout(fmt: str, dtype: torch.dtype, page_size: int | None) -> None:
    few = replace(ONE.processor, multiprocessors=1)  # chunks of several blocks
    check(replace(ONE, fmt=fmt, q_dtype=dtype, page_size=page_size, processor=few))


@inside
@pytest.mark.parametrize(("k_dim", "v_dim"), [(80, 80), (192, 128), (256, 256), (16, 240)])
@pytest.mark.parametrize("fmt", ["fp16", "int8", "fp8_e4m3"])
def test_head_dims(fmt: str, k_dim: int, v_dim: int) -> None:
    check(replace(ONE, fmt=fmt, k_dim=k_dim, v_dim=v_dim))


@inside
@pytest.mark.parametrize(
    ("base", "dims"), [(base, dims) for base, each in PACKED_DIMS.items() for dims in each]
)
@pytest.mark.parametrize("group", PACKED_GROUPS)
def test_head_dims_and_groups_of_packed_rows(base: str, dims: tuple[int, int], group: int) -> None:
    k_dim, v_dim = dims
    lengths = (70, 33)  # a block and a part of one
    check(replace(ONE, fmt=f"{base}-g{group}", k_dim=k_dim, v_dim=v_dim, lengths=lengths, room=70))


@inside
@pytest.mark.parametrize("group", [1, 16, 17, 40])
def test_groups_beside_and_above_the_rows_of_a_product(group: int) -> None:
    check(replace(ONE, group=group))


@inside
@pytest.mark.parametrize("multiprocessors", [1, 50])
@pytest.mark.parametrize("fmt", ["fp16", "int8", "int4"])
def test_scores_of_minus_infinity_weigh_nothing(fmt: str, multiprocessors: int) -> None:
    processor = replace(ONE.processor, multiprocessors=multiprocessors)
    case = replace(ONE, fmt=fmt, lengths=None, processor=processor)
    view, q = case.view(), case.query().abs()
    where = {"fp16": view.k, "int8": view.k_scale, "int4": view.k_zero}[fmt]
    assert where is not None
    if fmt == "int8":
        view.k.fill_(1)
    where[:, :, :130] = float("-inf")  # whole blocks come first
    compare(case, view, q, oracle_decode(q, view))
    where.fill_(float("-inf"))
    assert TRITON.decode(q, view).isnan().all()


@inside
def test_int8_scales_below_zero() -> None:
    view, q = replace(ONE, fmt="int8").view(), ONE.query()
    assert view.v_scale is not None
    view.v_scale.neg_()
    compare(replace(ONE, fmt="int8"), view, q, oracle_decode(q, view))


@inside
@pytest.mark.parametrize("multiprocessors", [1, 3, 50])
@pytest.mark.parametrize("lengths", [None, (1,), (64, 65), (1, 199, 128)])
def test_splits_do_not_show(multiprocessors: int, lengths: tuple[int, ...] | None) -> None:
    processor = replace(ONE.processor, multiprocessors=multiprocessors)
    check(replace(ONE, lengths=lengths, processor=processor))


@inside
def test_more_splits_than_the_merge_takes_at_once() -> None:
    processor = replace(ONE.processor, multiprocessors=200)
    check(replace(ONE, lengths=(1500, 90), room=1500, kv_heads=1, processor=processor))


@inside
def test_scores_far_from_zero_neither_overflow_nor_vanish() -> None:
    view, q = ONE.view(), ONE.query()
    for factor in (-30.0, 30.0):
        out = TRITON.decode(q * factor, view)
        assert error(out, oracle_decode(q * factor, view)) <= MAX_ERROR[q.dtype]


@inside
def test_values_with_small_scales_keep_their_precision_in_fp16() -> None:
    check(replace(ONE, fmt="int8", v_magnitude=1e-4))


@inside
def test_a_row_of_zeros_has_a_scale_of_zero() -> None:
    case = replace(ONE, fmt="int8")
    view, q = case.view(), case.query()
    assert view.v_scale is not None
    view.v_scale[:, :, :70] = 0.0
    assert error(TRITON.decode(q, view), oracle_decode(q, view)) <= MAX_ERROR[q.dtype]


@inside
@pytest.mark.parametrize("fmt", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("page_size", [None, 24, 256])
@pytest.mark.parametrize("window", [(1, 0), (64, 4), (66, 70), (130, 0), (300, 1)])
def test_of_a_window_and_its_sinks_nothing_else_is_read(
    fmt: str, page_size: int | None, window: tuple[int, int]
) -> None:
    """Tokens in between hold what would show in any result."""
    few = replace(ONE.processor, multiprocessors=1)
    case = replace(ONE, fmt=fmt, window=window[0], sink_tokens=window[1], processor=few)
    view, q = case.view(), case.query()
    expected = oracle_decode(q, view)
    for sequence, length in enumerate(view.lengths or ()):
        hidden = slice(window[1], max(window[1], length - window[0]))
        for x in view.tensors().values():
            x[sequence, :, hidden] = filling(x.dtype)
    if page_size is not None:
        generator = torch.Generator().manual_seed(1)
        view = replace(case, page_size=page_size).paged(view.tensors(), generator)
    compare(case, view, q, expected)


@inside
@pytest.mark.parametrize("fmt", ["fp8_e4m3", "fp8_e5m2"])
def test_every_number_of_fp8(fmt: str) -> None:
    """Each code as the one element of V that has weight."""
    dtype = stored_as(fmt).dtype
    codes = torch.arange(256, dtype=torch.uint8).view(dtype)
    codes = codes[codes.float().isfinite()]
    v = codes[codes.numel() - 240 :].clone().view(1, 1, 1, 240)
    k = torch.zeros(1, 1, 1, 16).to(dtype)
    out = TRITON.decode(torch.zeros(1, 1, 16, dtype=torch.float16), KVView(k, v, fmt))
    assert torch.equal(out[0, 0], v[0, 0, 0].to(torch.float16))


@inside
def test_the_self_test_finds_it_right() -> None:
    found = [c for c in run_checks(torch.device("cpu"), seed=0) if c.backend == "triton"]
    assert {check.state for check in found} == {"right", "unsupported"}
    assert {c.format for c in found if c.state == "right"} == BACKENDS["triton"].formats


@inside
def test_the_operator_under_torchs_own_checks() -> None:
    view, q = ONE.view(), ONE.query()
    arguments = (
        q, view.k, view.v, None, None, None, None, None, list(view.lengths or ()), "fp16", None, 0,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.kvgauge.triton_decode.default, arguments)


@inside
@given(triton_cases())
@settings(max_examples=36, deadline=None)
def test_drawn_caches(case: TritonCase) -> None:
    check(case)


@inside
def test_a_window_as_large_as_a_number_goes() -> None:
    case = ONE
    view = replace(case.view(), window=2**31 - 1, sink_tokens=128)
    q = case.query()
    assert error(BACKENDS["triton"].decode(q, view), oracle_decode(q, view)) < 1e-2


@inside
def test_the_operator_refuses_rows_that_are_not_contiguous() -> None:
    view, q = ONE.view(), ONE.query()
    arguments = (
        view.k,
        view.v,
        None,
        None,
        None,
        None,
        None,
        list(view.lengths or ()),
        view.format,
        None,
        0,
    )
    with pytest.raises(ValueError, match="rows contiguous"):
        torch.ops.kvgauge.triton_decode(q.transpose(1, 2).contiguous().transpose(1, 2), *arguments)


@inside
@pytest.mark.parametrize(
    ("fmt", "dim"),
    [*((fmt, dim) for fmt in ("fp16", "int8", "fp8_e4m3") for dim in (64, 80)),
     ("int4", 64), ("int4", 96)],
)  # fmt: skip
def test_nothing_behind_a_cache_is_read(fmt: str, dim: int) -> None:
    """Neither tokens behind the last one nor columns behind the last row's."""
    case = replace(ONE, fmt=fmt, k_dim=dim, v_dim=dim, lengths=None, room=70)
    view, q = case.view(), case.query()
    moved: dict[str, Any] = {name: before_a_wall(x) for name, x in view.tensors().items()}
    walled = replace(view, **moved)
    assert error(BACKENDS["triton"].decode(q, walled), oracle_decode(q, view)) < 1e-2


@inside
@pytest.mark.parametrize("fmt", ["bf16", "int8", "int4", "fp8_e4m3"])
def test_one_graph_of_torch_compile(fmt: str) -> None:
    view = replace(ONE, fmt=fmt, q_dtype=torch.bfloat16).view()
    q = replace(ONE, fmt=fmt, q_dtype=torch.bfloat16).query()

    def step(q: torch.Tensor) -> torch.Tensor:
        return decode(q, view, "triton")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q), step(q))


@inside
@pytest.mark.parametrize("fmt", ["fp16", "int4"])
def test_every_candidate_of_the_tuning_is_right_and_named(fmt: str) -> None:
    case = replace(ONE, fmt=fmt)
    view, q = case.view(), case.query()
    expected = oracle_decode(q, view)
    entry = configs.choose_for(launch.processor(q.device).room, fmt, 64, 64, paged=False)
    for config in tuned.candidates(entry):
        with tuned.on_trial(config):
            assert error(TRITON.decode(q, view), expected) < MAX_ERROR_OF_GROUPS
        assert f"config {tuned.named(config)} (on trial)" in TRITON.version()
    TRITON.decode(q, view)
    assert f"config {tuned.named(entry)} (table)" in TRITON.version()
