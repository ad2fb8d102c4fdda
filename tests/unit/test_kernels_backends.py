"""The table, the one signature, and what each backend says that it cannot do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels_for_tests import (
    as_numbers,
    assert_right_kernel,
    error,
    make_query,
    make_view,
    naive,
    naive_decode,
    observed,
)
from kvgauge_kernels import BACKENDS, KVView, backend, decode, oracle_decode, prefill
from kvgauge_kernels import reference as reference_module
from kvgauge_kernels.dequant import dequantized
from kvgauge_kernels.sdpa import flash_limit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = ["eager", "sdpa-math", "sdpa-flash"]


def test_the_table_names_every_backend_once() -> None:
    assert len({id(b) for b in BACKENDS.values()}) == len(BACKENDS)
    assert next(iter(BACKENDS)) == "reference"
    assert all(backend(name).name == name for name in BACKENDS)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'falsh': one of reference, eager, "):
        backend("falsh")


def test_decode_and_prefill_take_sdpa_flash_unless_told() -> None:
    view = make_view("bf16")
    q, q4 = make_query(view, 4, torch.bfloat16), make_query(view, 4, torch.bfloat16, 6)
    for out, seen in (observed(lambda: decode(q, view)), observed(lambda: prefill(q4, view))):
        assert out.shape[:2] == (2, 8)
        assert_right_kernel(BACKENDS["sdpa-flash"], seen)
    assert "aten::bmm" in observed(lambda: decode(q, view, "eager"))[1]


@pytest.mark.parametrize(
    ("name", "view", "message"),
    [
        ("flash-attn", make_view("bf16"), "flash-attn: flash-attn needs a CUDA device, not cpu"),
        ("sdpa-flash", make_view("bf16", k_dim=64, v_dim=32), "k_dim 64 and v_dim 32"),
        ("sdpa-flash", make_view("fp16"), "a cache of float16 with queries of bfloat16"),
        ("eager", make_view("int8"), "format int8: it reads bf16, fp16, fp32"),
        ("dequant+sdpa", make_view("bf16"), "format bf16: it reads fp8_e4m3, fp8_e5m2, int2"),
        ("dequant+sdpa", make_view("int8", k_dim=64, v_dim=32), "k_dim 64 and v_dim 32"),
    ],
)
def test_what_a_backend_cannot_do_is_an_error_with_the_reason(
    name: str, view: KVView, message: str
) -> None:
    for call, tokens in ((decode, ()), (prefill, (2,))):
        with pytest.raises(ValueError, match=message):
            call(make_query(view, 2, torch.bfloat16, *tokens), view, name)


def test_dequant_refuses_queries_that_it_cannot_dequantize_to() -> None:
    reason = BACKENDS["dequant+sdpa"].supports(make_view("int8"), torch.float64)
    assert reason == "queries of torch.float64: it dequantizes to fp32, fp16, bf16"


@pytest.mark.parametrize("name", [*PLAIN, "reference", "dequant+sdpa"])
def test_every_backend_checks_its_queries(name: str) -> None:
    """Also those of a longer batch, of which a loop over sequences would drop the last."""
    view = make_view("int8" if name == "dequant+sdpa" else "fp32", lengths=(7, 40))
    for call, tokens in ((backend(name).decode, ()), (backend(name).prefill, (2,))):
        for shape in ((2, 3, *tokens, 64), (3, 4, *tokens, 64), (2, 4, *tokens, 32)):
            with pytest.raises(ValueError, match=r"query heads|must be"):
                call(torch.zeros(shape), view)
    with pytest.raises(ValueError, match="8 query tokens for a sequence of 7"):
        backend(name).prefill(torch.zeros(2, 4, 8, 64), view)


@pytest.mark.parametrize("name", ["reference", "eager", "sdpa-math"])
def test_k_dim_may_differ_from_v_dim(name: str) -> None:
    view = make_view("fp32", k_dim=192, v_dim=128, lengths=(9, 40))
    q = make_query(view, 2, torch.float32)
    assert backend(name).supports(view, torch.float32) is None
    assert error(backend(name).decode(q, view), naive_decode(q, view)) < 1e-5


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("name", ["eager", "sdpa-flash"])
@pytest.mark.parametrize("lengths", [None, (30, 30), (7, 40)])
def test_the_cache_is_not_copied(
    name: str, lengths: tuple[int, ...] | None, tokens_first: bool
) -> None:
    view = make_view("bf16", lengths=lengths, tokens_first=tokens_first)
    copies = {"aten::clone", "aten::contiguous", "aten::copy_", "aten::repeat_interleave"}
    _, seen = observed(lambda: decode(make_query(view, 4, torch.bfloat16), view, name))
    assert not seen & copies


def test_sdpa_math_does_copy_and_is_told_from_eager() -> None:
    view = make_view("bf16")
    q = make_query(view, 4, torch.bfloat16)
    math, eager = (observed(lambda n=n: decode(q, view, n))[1] for n in ("sdpa-math", "eager"))  # type: ignore[misc]
    assert "aten::clone" in math
    assert math & set(BACKENDS["eager"].forbidden_ops)
    assert not eager & set(BACKENDS["sdpa-math"].kernel_ops)


@pytest.mark.filterwarnings("ignore:Flash attention")
def test_torch_raises_where_its_flash_kernel_cannot_and_takes_no_other() -> None:
    """What sdpa-flash rests on: under sdpa_kernel no other kernel steps in."""
    q, v = torch.randn(1, 2, 4, 64), torch.randn(1, 2, 4, 32)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match="No available"):
        F.scaled_dot_product_attention(q, q, v)
    view = make_view("fp32", k_dim=64, v_dim=32)
    flash = BACKENDS["sdpa-flash"]
    for call, tokens in ((flash.decode, ()), (flash.prefill, (2,)), (flash.prefill, (40,))):
        with pytest.raises(RuntimeError, match="No available"):
            call(make_query(view, 2, torch.float32, *tokens), view)


@pytest.mark.parametrize("head_dim", [8, 33, 256, 512])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_torch_flash_on_the_cpu_takes_any_head_dim(head_dim: int, dtype: str) -> None:
    view = make_view(dtype, k_dim=head_dim, tokens=20)
    q = make_query(view, 3, view.k.dtype)
    assert error(decode(q, view), naive_decode(q, view)) < 3e-2


@pytest.mark.parametrize(
    ("device", "dtype", "dims", "message"),
    [
        (CPU, torch.float32, (33, 33), None),
        (CPU, torch.float32, (192, 128), "one head_dim"),
        (CUDA, torch.bfloat16, (256, 256), None),
        (CUDA, torch.float32, (128, 128), "float16 and bfloat16"),
        (CUDA, torch.float16, (264, 264), "up to 256"),
        (CUDA, torch.float16, (33, 33), "multiple of 8"),
        (CUDA, torch.float16, (192, 128), "one head_dim"),
    ],
)
def test_limits_of_torch_flash(
    device: torch.device, dtype: torch.dtype, dims: tuple[int, int], message: str | None
) -> None:
    reason = flash_limit(device, dtype, *dims)
    assert (reason is None) if message is None else (message in str(reason))


def test_sdpa_flash_is_available_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    available = BACKENDS["sdpa-flash"].available
    assert available(CPU) is None
    assert "no flash kernel for mps" in str(available(torch.device("mps")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in PLAIN:
        assert "no CUDA device" in str(BACKENDS[name].available(CUDA))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert "compute capability 7.5" in str(available(CUDA))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert available(CUDA) is None


def test_the_oracle_is_float64_and_sees_what_fp32_cannot() -> None:
    view = make_view("fp32", tokens=300)
    q = make_query(view, 4, torch.float32)
    exact = oracle_decode(q, view)
    assert exact.dtype == torch.float64
    assert error(exact, naive_decode(q, view)) < 1e-14


def test_the_oracle_in_small_steps_is_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    view = make_view("int8", lengths=(20, 40))
    q = make_query(view, 3, torch.bfloat16, 17)
    monkeypatch.setattr(reference_module, "_SCORES", 3 * 40 * 5)
    assert error(reference_module.oracle_prefill(q, view), naive(q, view)) < 1e-14


@pytest.mark.parametrize("fmt", ["int4", "int2-g16", "fp8_e4m3", "fp8_e5m2"])
def test_dequantized_is_what_is_stored(fmt: str) -> None:
    view = make_view(fmt, lengths=(3, 40))
    plain = dequantized(view, torch.float32)
    assert plain.lengths == (3, 40)
    for which, x in (("k", plain.k), ("v", plain.v)):
        assert torch.allclose(x.double(), torch.from_numpy(as_numbers(view, which)), rtol=1e-6)


def test_dequantized_is_stored_times_scale() -> None:
    view = make_view("int8", lengths=(3, 40))
    plain = dequantized(view, torch.float32)
    assert view.v_scale is not None
    assert plain.format == "fp32"
    assert plain.lengths == (3, 40)
    assert torch.equal(plain.v, view.v.float() * view.v_scale.float()[..., None])
