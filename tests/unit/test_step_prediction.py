"""What a whole step costs, and what weights and a batch of caches hold, worked out by hand."""

from __future__ import annotations

import pytest

from kvgauge.formats import kv_format
from kvgauge.formula.held import Storage
from kvgauge.formula.moved import decode_operations, total_flops
from kvgauge.formula.plan import make_plan
from kvgauge.formula.prefill import prefill_operations
from kvgauge.formula.weights import WEIGHT_FORMATS, weight_format
from kvgauge.schema import Cell
from kvgauge.shapes.resolve import resolve
from kvgauge.suites.types import CellPlan, cell_kv_bytes
from kvgauge.traces.types import Trace
from shapes_for_tests import gqa

FP16 = kv_format("fp16")
# 2 layers, 8 query heads, 2 KV heads of 16; 1000 parameters, of which a token uses 900.
TINY = gqa()
TOKEN_BYTES = 2 * 2 * 2 * 16 * 2


def test_the_weights_multiply_and_add_once_for_each_sequence() -> None:
    operations = decode_operations(TINY, 10, FP16, batch=4, scope="step")
    flops = {op.name: op.flops for op in operations}
    assert flops["weights"] == 4 * 900 * 2
    assert flops["append"] == 0
    attention = 4 * 2 * 8 * 10 * (16 + 16) * 2  # sequences, layers, heads, tokens, q·K and p·V
    assert total_flops(operations) == attention + 4 * 900 * 2


@pytest.mark.parametrize(
    ("weight_format", "total", "active"),
    [
        ("fp32", 4000, 3600), ("fp16", 2000, 1800), ("bf16", 2000, 1800),
        ("fp8", 1000, 900), ("int8", 1000, 900),
        # Groups of 128 with 20 bits, of 32 and of 16 with 8: the last one is whole where it is not full.
        ("int4", 500 + 8 * 20 // 8, 450 + 8 * 20 // 8),
        ("mxfp4", 500 + 32, 450 + 29), ("nvfp4", 500 + 63, 450 + 57),
    ],
)  # fmt: skip
def test_a_plan_counts_weights_by_their_format(weight_format: str, total: int, active: int) -> None:
    plan = make_plan(TINY, Trace(think_tokens=10), weight_format=weight_format, batch=4)
    assert plan.weight_bytes == total
    assert plan.decode is not None
    # The step reads the held cache and the active weights, and writes a token for each sequence.
    assert plan.decode.bytes_per_step == 4 * 10 * TOKEN_BYTES + active + 4 * TOKEN_BYTES
    assert plan.decode.flops_per_step == 4 * 2 * 8 * 10 * 32 * 2 + 4 * 900 * 2


def test_no_weight_format_is_without_a_worked_figure() -> None:
    assert set(WEIGHT_FORMATS) == {
        "fp32", "fp16", "bf16", "fp8", "int8", "int4", "mxfp4", "nvfp4",
    }  # fmt: skip


@pytest.mark.parametrize(("layers_timed", "layers"), [(None, 2), (1, 1)])
def test_a_cell_holds_the_cache_of_every_sequence(layers_timed: int | None, layers: int) -> None:
    cell = Cell(
        "footprint", "memory", "tiny", TINY.shape_id, "fp16",
        prompt_tokens=20, think_tokens=70, answer_tokens=10, batch=3, layers_timed=layers_timed,
    )  # fmt: skip
    assert cell_kv_bytes(CellPlan(cell, TINY)) == 3 * 100 * layers * 2 * 2 * 16 * 2


def test_a_prefill_reads_the_experts_that_all_its_tokens_visit() -> None:
    """Mixtral's 8 experts, 2 a token: one token reads 2, a thousand tokens all."""
    shape = resolve("mixtral-8x7b")
    one_expert = 3 * 4096 * 14336  # gate, up and down
    routed = 32 * 8 * one_expert
    bf16 = weight_format("bf16")

    def weights_read(tokens: int, batch: int) -> int:
        operations = prefill_operations(shape, tokens, Storage(FP16), batch, bf16)
        return next(op.moved_bytes for op in operations if op.name == "weights")

    active = shape.params_active
    assert active is not None
    assert weights_read(1, 1) == 2 * active
    assert weights_read(1000, 1) == 2 * (active + routed * 6 // 8)
    # Two tokens miss one expert with probability (3/4)^2 each: 3.5 of 8 are visited, not 2.
    assert weights_read(2, 1) == weights_read(1, 2) == 2 * (active + routed * 3 // 16)
