"""The formula against figures worked out by hand and against the published ones."""

from __future__ import annotations

import pytest

from kvgauge.errors import UserError
from kvgauge.formats import FORMATS, kv_format
from kvgauge.formula.floor import Rates, bound, floor_s
from kvgauge.formula.held import (
    kv_heads_per_rank,
    marginal_bytes,
    page_rounded,
    request_bytes,
    state_bytes,
)
from kvgauge.formula.moved import Operation, decode_operations, total_bytes, total_flops
from kvgauge.formula.plan import make_plan
from kvgauge.shapes.types import LayerShape, ModelShape, StatePart
from kvgauge.traces.types import Trace
from shapes_for_tests import LLAMA_70B, gqa

FP16 = kv_format("fp16")


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (1, 327_680),
        (500, 163_840_000),
        (50_000, 16_384_000_000),
        (2_048, 671_088_640),
        (10_000, 3_276_800_000),
        (1_024, 335_544_320),
        (80, 26_214_400),
        (0, 0),
    ],
)
def test_textbook_figures_of_a_70b_gqa_model(tokens: int, expected: int) -> None:
    assert request_bytes(LLAMA_70B, tokens, FP16) == expected


def test_half_the_kv_heads_is_half_the_bytes() -> None:
    four = gqa(layers=80, q_heads=64, kv_heads=4, head_dim=128)
    assert 2 * request_bytes(four, 50_000, FP16) == request_bytes(LLAMA_70B, 50_000, FP16)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fp32", 80 * 8 * 2 * 128 * 4),
        ("fp16", 80 * 8 * 2 * 128 * 2),
        ("bf16", 80 * 8 * 2 * 128 * 2),
        ("int8", 80 * 8 * 2 * (128 + 2)),  # one fp16 scale a token, head, and K or V
    ],
)
def test_bytes_a_token_by_format(name: str, expected: int) -> None:
    assert marginal_bytes(LLAMA_70B, 10, kv_format(name)) == expected


def test_a_window_stops_growing_and_the_next_token_is_free() -> None:
    shape = gqa(window=10)
    row = 2 * 2 * 2 * 16 * 2
    assert request_bytes(shape, 9, FP16) == 9 * row
    assert request_bytes(shape, 10, FP16) == request_bytes(shape, 1000, FP16) == 10 * row
    assert marginal_bytes(shape, 9, FP16) == row
    assert marginal_bytes(shape, 10, FP16) == 0


def test_pages_round_up_a_layer_and_sequence() -> None:
    assert [page_rounded(n, 16) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]
    assert page_rounded(17, None) == 17
    assert request_bytes(LLAMA_70B, 17, FP16, page_size=16) == 32 * 327_680


def test_latent_is_neither_doubled_nor_divided() -> None:
    layer = LayerShape("mla", q_heads=128, latent_dim=512, rope_dim=64)
    shape = ModelShape("mla", (layer,) * 61, 7168, 100, None, None, "test")
    assert shape.attention == "mla"
    expected = 61 * (512 + 64) * 2
    assert request_bytes(shape, 1, FP16) == expected
    assert request_bytes(shape, 1, FP16, tensor_parallel=8) == expected


def test_state_is_constant() -> None:
    shape = ModelShape(
        "hybrid",
        (LayerShape("ssm", state=(StatePart("conv", 500, 16),)), gqa().layers[0], LayerShape("none")),
        64, 100, None, None, "test",
    )  # fmt: skip
    assert shape.attention == "hybrid"
    row = 2 * 2 * 16 * 2
    assert request_bytes(shape, 0, FP16) == state_bytes(shape) == 1000
    assert request_bytes(shape, 7, FP16) == 1000 + 7 * row


@pytest.mark.parametrize(
    ("kv_heads", "tp", "expected"), [(8, 1, 8), (8, 4, 2), (8, 8, 1), (8, 16, 1)]
)
def test_heads_divide_then_replicate(kv_heads: int, tp: int, expected: int) -> None:
    assert kv_heads_per_rank(kv_heads, tp) == expected


@pytest.mark.parametrize("tp", [0, -1, 3, 12])
def test_a_tensor_parallel_size_that_does_not_fit_is_refused(tp: int) -> None:
    with pytest.raises(UserError, match="tensor parallel"):
        kv_heads_per_rank(8, tp)


def test_decode_moves_the_held_bytes_once() -> None:
    operations = decode_operations(LLAMA_70B, 1000, FP16)
    assert total_bytes(operations) == 327_680_000
    # 64 query heads, 1000 tokens, 128 multiply-adds for the score and 128 for the value, 80 layers
    assert total_flops(operations) == 80 * 64 * 1000 * (2 * 128 + 2 * 128)
    timed = decode_operations(LLAMA_70B, 1000, FP16, layers_timed=2, batch=3)
    assert total_bytes(timed) == 3 * 2 * 4096 * 1000


def test_a_step_adds_the_weights_once_and_the_token_for_each_sequence() -> None:
    shape = gqa()
    row = 2 * 2 * 2 * 16 * 2
    operations = decode_operations(shape, 10, FP16, batch=4, scope="step", weight_bits=16)
    assert total_bytes(operations) == 4 * 10 * row + 900 * 2 + 4 * row


def test_floor_sums_the_larger_side_of_each_operation() -> None:
    rates = Rates(read_bytes_per_s=100.0, flops_per_s=10.0, source="probe")
    operations = [Operation("a", 200, 10), Operation("b", 100, 50)]
    assert floor_s(operations, rates) == pytest.approx(2.0 + 5.0)
    assert bound(operations, rates) == "compute"
    assert bound(operations[:1], rates) == "memory"


def test_plan_is_the_contract() -> None:
    plan = make_plan(LLAMA_70B, Trace(think_tokens=50_000), batch=2, tensor_parallel=4)
    assert plan.kv_bytes_per_token == 327_680
    assert plan.kv_bytes_per_request == 16_384_000_000
    assert plan.kv_bytes_per_batch == 32_768_000_000
    assert plan.kv_bytes_per_gpu == 4_096_000_000
    assert plan.weight_bytes == 2000
    assert all(isinstance(v, int) for k, v in plan.to_json().items() if k.startswith("kv_bytes"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"kv_format_name": "fp12"},
        {"weight_format": "x"},
        {"batch": 0},
        {"page_size": 0},
        {"tensor_parallel": 0},
        {"engine": "x"},
        {"gpu": "x"},
        {"utilization": 0.0},
        {"utilization": 1.1},
        {"utilization": float("nan")},
        {"reserve_bytes": -1},
        {"kv_format_name": "int8", "engine": "llama.cpp"},
    ],
)
def test_a_wrong_setting_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        make_plan(LLAMA_70B, Trace(think_tokens=5), **wrong)  # type: ignore[arg-type]


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(UserError, match="think_tokens=-1"):
        Trace(think_tokens=-1)


def test_every_format_says_what_a_row_costs() -> None:
    assert {n: f.row_bytes(128) for n, f in FORMATS.items()}.items() >= {
        "fp32": 512, "fp16": 256, "bf16": 256, "int8": 130,
    }.items()  # fmt: skip
