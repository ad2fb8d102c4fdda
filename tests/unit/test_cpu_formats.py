"""The native kernels over formats of few bits, 8-bit floats and windows: checks, and odd numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from kernels_for_tests import FLOAT8, as_stored, error, make_query, make_view, naive_decode
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.cpu.native_module import native

built = pytest.mark.skipif(native() is None, reason="the native kernels are not built")


@built
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k_scale": None}, "int4 has scales"),
        ({"v_zero": None}, "int4 has zero points"),
        ({"k_scale": torch.ones(1, 4, 9).half()}, r"scales must be float16 \[1, 4, 9, 2\]"),
        ({"v_scale": torch.ones(1, 4, 9, 2)}, "scales must be float16"),
        ({"v_zero": torch.ones(1, 4, 2, 9).half().mT}, "next to each other"),
        ({"kv_format": "int4-g24"}, "scales must be"),
        ({"kv_format": "int2"}, "is not of a cache"),
    ],
)
def test_the_operator_checks_groups_too(change: dict[str, Any], says: str) -> None:
    codes, side = torch.zeros(1, 4, 9, 64, dtype=torch.uint8), torch.ones(1, 4, 9, 2).half()
    given: dict[str, Any] = {
        "q": torch.ones(1, 4, 128), "k": codes, "v": codes, "k_scale": side, "v_scale": side,
        "k_zero": side, "v_zero": side, "block_table": None, "lengths": None,
        "kv_format": "int4", "int_bits": 16, "window": 0, "sink_tokens": 0,
    }  # fmt: skip
    assert torch.equal(torch.ops.kvgauge.cpu_decode(**given), torch.ones(1, 4, 128))
    with pytest.raises(ValueError, match=says):
        torch.ops.kvgauge.cpu_decode(**{**given, **change})


@built
def test_groups_that_are_no_multiple_of_16_are_refused_with_the_reason() -> None:
    view = make_view("int4-g24", k_dim=64)
    assert "groups of 24: cpu takes multiples of 16" in str(
        BACKENDS["cpu"].supports(view, torch.float32)
    )


@built
@pytest.mark.parametrize("fmt", list(FLOAT8))
def test_all_codes_of_an_eight_bit_float(level: str, fmt: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8[fmt])
    finite = torch.isfinite(codes.float())
    v = codes.view(1, 16, 1, 16)
    view = KVView(torch.zeros_like(v), v, fmt)
    out = BACKENDS["cpu"].decode(torch.zeros(1, 16, 16), view)  # one token: its value is the result
    as_value, expected = out.view(-1), codes.float()
    assert torch.equal(as_value[finite], expected[finite])
    assert torch.equal(as_value.isnan(), expected.isnan())
    assert torch.equal(as_value.isinf(), expected.isinf())


@built
@pytest.mark.parametrize("name", ["cpu", "cpu-q8"])
@pytest.mark.parametrize("fmt", ["int4", "int2"])
@pytest.mark.parametrize("sign", ["negative", "zero", "not a number"])
def test_scales_that_are_no_steps(level: str, name: str, fmt: str, sign: str) -> None:
    view = make_view(fmt, tokens=90, k_dim=128)
    assert view.v_scale is not None
    if name == "cpu-q8" and level == "portable":
        pytest.skip("cpu-q8 is for AVX-512 and AVX2")
    wrong = {"negative": -0.5, "zero": 0.0, "not a number": float("nan")}[sign]
    view.v_scale[:, 0, 17, 1] = wrong
    q = make_query(view, 4, torch.float32)
    out, expected = BACKENDS[name].decode(q, view), oracle_decode(q, view)
    assert torch.equal(out.isnan(), expected.isnan())
    assert out.isnan().any() == (sign == "not a number")
    known = ~expected.isnan()
    assert (out[known] - expected[known]).abs().max() < 3e-2 * expected[known].abs().max()


@built
@pytest.mark.parametrize("sinks", [0, 4, 100])
@pytest.mark.parametrize("window", [1, 64, 500, 5000])
def test_a_window_and_sinks(window: int, sinks: int) -> None:
    whole = make_view("fp32", tokens=900)
    view = replace(whole, window=window, sink_tokens=sinks)
    q = make_query(view, 4, torch.float32)
    assert error(BACKENDS["cpu"].decode(q, view), naive_decode(q, view)) < 1e-5
    seen = sorted({*range(min(sinks, 900)), *range(max(0, 900 - window), 900)})
    cut = replace(whole, k=whole.k[:, :, seen], v=whole.v[:, :, seen])
    assert error(BACKENDS["cpu"].decode(q, view), oracle_decode(q, cut)) < 1e-5


def test_backends_without_windows_say_so() -> None:
    view = replace(make_view("fp32"), window=8)
    for name in ("eager", "sdpa-math", "sdpa-flash"):
        assert "a sliding window" in str(BACKENDS[name].supports(view, torch.float32))
    with pytest.raises(ValueError, match="prefill has no sliding window"):
        BACKENDS["cpu"].prefill(make_query(view, 2, torch.float32, 3), view)
    for wrong in ({"window": 0}, {"window": None, "sink_tokens": 3}, {"sink_tokens": -1}):
        with pytest.raises(ValueError, match=r"window|sink"):
            replace(view, **wrong)


@built
@pytest.mark.parametrize(
    ("fmt", "dim", "taken"),
    [("int4", 128, True), ("int4", 96, True), ("int4", 80, False), ("int2", 64, True),
     ("int2", 96, False), ("int4-g16", 64, False), ("int8", 128, False)],
)  # fmt: skip
def test_8_bits_with_avx2_want_whole_pieces(level: str, fmt: str, dim: int, taken: bool) -> None:
    reason = BACKENDS["cpu-q8"].supports(make_view(fmt, tokens=70, k_dim=dim), torch.float16)
    if level == "avx512" or (level == "avx2" and taken):
        assert reason is None
    else:
        assert f"needs AVX-512 with VNNI, not {level}" in str(reason)


@built
def test_the_operator_checks_keys_per_channel(level: str) -> None:
    view = make_view("kivi4", batch=2, tokens=48, k_dim=64)
    q = make_query(view, 2, torch.float32)
    table = torch.zeros(2, 1, dtype=torch.int32)
    given: dict[str, Any] = {
        "q": q, **view.tensors(), "block_table": None, "lengths": None, "kv_format": "kivi4",
        "int_bits": 16, "window": 0, "sink_tokens": 0,
    }  # fmt: skip
    out = torch.ops.kvgauge.cpu_decode(**given)
    assert error(out, oracle_decode(q, view)) < 1e-4
    assert view.k_scale is not None
    for change, says in (
        ({"k_scale": view.v_scale}, r"scales must be float16 \[2, 2, 2, 64\]"),
        ({"v_scale": view.k_scale}, r"scales must be float16 \[2, 2, 48, 2\]"),
        ({"k_zero": None}, "kivi4 has zero points"),
        ({"k_scale": view.k_scale.mT.contiguous().mT}, "next to each other"),
        ({"block_table": table}, "pages must hold whole groups of tokens"),
    ):
        with pytest.raises(ValueError, match=says):
            torch.ops.kvgauge.cpu_decode(**{**given, **change})


@built
@pytest.mark.parametrize("name", ["cpu", "cpu-q8"])
@pytest.mark.parametrize("sign", ["negative", "zero", "infinite", "not a number"])
def test_scales_of_a_channel_that_are_no_steps(level: str, name: str, sign: str) -> None:
    view = make_view("kivi4", tokens=90, k_dim=128)
    if BACKENDS[name].supports(view, torch.float32):
        pytest.skip("cpu-q8 is for AVX-512 here")
    assert view.k_scale is not None
    wrong = {"negative": -0.5, "zero": 0.0, "infinite": float("inf"), "not a number": float("nan")}
    view.k_scale[:, 0, 1, 17] = wrong[sign]
    q = make_query(view, 4, torch.float32)
    out, expected = BACKENDS[name].decode(q, view), oracle_decode(q, view)
    if sign in ("negative", "zero"):
        assert error(out, expected) < 3e-2
    else:
        assert out[:, :4].isnan().all()
        assert torch.isfinite(out[:, 4:]).all()


@built
@pytest.mark.parametrize("name", ["cpu", "cpu-q8"])
def test_channels_that_are_all_zero_points(level: str, name: str) -> None:
    """Their scales are 0, and so is the query that meets the codes: the zero points remain."""
    view = make_view("kivi4", tokens=90, k_dim=128)
    if BACKENDS[name].supports(view, torch.float32):
        pytest.skip("cpu-q8 is for AVX-512 here")
    assert view.k_scale is not None
    view.k_scale[:, :, 1] = 0.0
    q = make_query(view, 4, torch.float32)
    assert error(BACKENDS[name].decode(q, view), oracle_decode(q, view)) < 3e-2
    tiny = 1e-35 * q  # no step of it has an inverse
    assert error(BACKENDS[name].decode(tiny, view), oracle_decode(tiny, view)) < 1e-2


@built
@pytest.mark.parametrize("name", ["cpu", "cpu-q8"])
@pytest.mark.parametrize("side", ["k_scale", "k_zero", "v_scale", "v_zero"])
@pytest.mark.parametrize("infinite", [float("inf"), float("-inf")])
@pytest.mark.parametrize("fmt", ["int8", "int4", "int2", "kivi4"])
def test_scales_and_zeros_that_are_infinite_show(
    level: str, name: str, side: str, infinite: float, fmt: str
) -> None:
    """A sum over integers times such a scale may be -inf, which a softmax would hide."""
    view = make_view(fmt, tokens=90, k_dim=128)
    tensor, q = view.tensors().get(side), make_query(view, 4, torch.float32)
    if tensor is None or BACKENDS[name].supports(view, q.dtype) is not None:
        pytest.skip(f"{fmt} has no {side}, or {name} does not read it here")
    tensor[0, 1, 1] = infinite
    out = BACKENDS[name].decode(q, view)
    assert not out[0, 4:].isfinite().any(dim=-1).all()
    assert out[0, :4].isfinite().all()
    assert out[1].isfinite().all()


@built
@pytest.mark.parametrize("fmt", ["int8", "int4", "int2"])
@pytest.mark.parametrize(("weight", "size"), [(512.0, 1e-3), (1.0, 300.0), (1e-4, 300.0)])
def test_one_token_of_v_that_stands_out_costs_the_others_little(
    level: str, fmt: str, weight: float, size: float
) -> None:
    """A sink (much weight, a small V), or a large V: the step of a block is of their products."""
    made = torch.Generator().manual_seed(0)
    k, v = torch.zeros(1, 1, 128, 128), torch.randn(1, 1, 128, 128, generator=made)
    k[..., 1:] = 1e-4 * torch.randn(1, 1, 128, 127, generator=made)
    k[0, 0, 0, 0], v[:, :, 0] = 1.0, v[:, :, 0] * size
    q = torch.zeros(1, 1, 128)
    q[..., 0] = math.log(weight) * 128**0.5
    view = KVView(format=fmt, **as_stored("k", k, fmt), **as_stored("v", v, fmt))
    expected = oracle_decode(q, view)
    for name, limit in (("cpu", 3e-4), ("cpu-q8", 0.1)):
        if BACKENDS[name].supports(view, q.dtype) is None:
            assert error(BACKENDS[name].decode(q, view), expected) < limit, name
