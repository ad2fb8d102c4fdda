"""A whole plan: engines' conventions, ranks, rooflines, the ledger, the explanation."""

from __future__ import annotations

import pytest

from kvgauge import api
from kvgauge.errors import UserError
from kvgauge.formats import kv_format
from kvgauge.formula.engines import LLAMA_CPP, VLLM
from kvgauge.formula.flips import flips
from kvgauge.formula.floor import bound, datasheet_rates
from kvgauge.formula.hardware import CARDS, gpu_named
from kvgauge.formula.held import Storage, held_bytes, request_bytes, state_bytes
from kvgauge.formula.moved import decode_operations, step_operations, total_bytes
from kvgauge.formula.plan import make_plan
from kvgauge.formula.prefill import causal_pairs, prefill_operations
from kvgauge.formula.setting import setting
from kvgauge.formula.weights import weight_format
from kvgauge.shapes.types import LayerShape, ModelShape, StatePart
from kvgauge.traces.types import Trace
from shapes_for_tests import LLAMA_70B, gqa

FP16 = kv_format("fp16")
DSA = ModelShape(
    "dsa", (LayerShape("mla", 128, latent_dim=512, rope_dim=64, index_dim=128),) * 2, 64, 100, 1000,
    900, "test",
)  # fmt: skip
HYBRID = ModelShape(
    "hybrid",
    (LayerShape("linear", state=(StatePart("conv", 80, 16), StatePart("recurrent", 16, 32))),
     gqa().layers[0]),
    64, 100, 1000, 900, "test",
)  # fmt: skip


def test_indexer_keys_by_convention() -> None:
    latent = (512 + 64) * 2
    assert request_bytes(DSA, 1, FP16) == 2 * (latent + 256)
    assert request_bytes(DSA, 1, FP16, page_size=1, engine=VLLM) == 2 * (latent + 132)
    assert request_bytes(DSA, 1, FP16, tensor_parallel=8) == 2 * (latent + 256)  # not divided


def test_vllm_stores_pages_of_16_unless_told() -> None:
    assert held_bytes(LLAMA_70B, 17, Storage(FP16, engine=VLLM)) == 32 * 327_680
    assert held_bytes(LLAMA_70B, 17, Storage(FP16, 64, engine=VLLM)) == 64 * 327_680


def test_llama_cpp_pads_the_context_and_gives_windows_room() -> None:
    row = 2 * 2 * 2 * 16 * 2
    assert held_bytes(gqa(), 1, Storage(FP16, engine=LLAMA_CPP)) == 256 * row
    # a window of 1,000 and 512 more, padded to 1,536
    windowed = gqa(window=1000)
    assert held_bytes(windowed, 50_000, Storage(FP16, engine=LLAMA_CPP)) == 1536 * row
    assert held_bytes(windowed, 300, Storage(FP16, engine=LLAMA_CPP)) == 512 * row


def test_state_is_fp32_in_llama_cpp_and_divided_where_ranks_divide_it() -> None:
    assert state_bytes(HYBRID) == 80 * 2 + 16 * 4
    assert state_bytes(HYBRID, engine=LLAMA_CPP) == 80 * 4 + 16 * 4
    assert state_bytes(HYBRID, 4) == 20 * 2 + 4 * 4
    assert state_bytes(HYBRID, 3) == state_bytes(HYBRID)


def test_a_shared_layer_stores_nothing_and_reads_the_same() -> None:
    own = gqa().layers[0]
    reader = LayerShape("full", 8, 2, 16, 16, shared=True)
    shape = ModelShape("shared", (own, reader), 64, 100, None, None, "test")
    row = 2 * 2 * 16 * 2
    assert request_bytes(shape, 10, FP16) == 10 * row
    assert total_bytes(decode_operations(shape, 10, FP16)) == 2 * 10 * row


def test_a_step_on_one_rank_of_two() -> None:
    operations = step_operations(gqa(), 10, Storage(FP16, None, 2), 4, weight_format("bf16"))
    row = 2 * 2 * 1 * 16 * 2
    assert total_bytes(operations) == 4 * 10 * row + 900 + 4 * row


def test_causal_pairs_by_counting() -> None:
    for n, window in ((7, None), (7, 3), (3, 7), (0, 2)):
        counted = sum(min(i, window or i) for i in range(1, n + 1))
        assert causal_pairs(n, window) == counted


def test_a_prefill_applies_the_output_head_once() -> None:
    shape = ModelShape("m", gqa().layers, 4, 10, 1000, 900, "test")
    operations = prefill_operations(shape, 5, Storage(FP16), 1, weight_format("bf16"))
    weights = next(op for op in operations if op.name == "weights")
    assert weights.flops == 2 * (5 * (900 - 40) + 40)
    attention = next(op for op in operations if op.name.startswith("attention"))
    assert attention.flops == 2 * (2 * 8 * (16 + 16) * 15)  # two layers, 15 pairs


def test_decode_on_an_h100_by_hand() -> None:
    plan = api.plan("llama-3.1-70b", think=50_000, tp=4, gpu="H100")
    assert plan.decode is not None
    assert plan.rates_source == "datasheet"
    moved = 4_096_000_000 + 34_751_516_672 + 81_920
    assert plan.decode.bytes_per_step == moved
    assert plan.decode.floor_s == pytest.approx(moved / 3.35e12)
    assert plan.decode.bound == "memory"
    assert plan.decode.tokens_per_s == pytest.approx(3.35e12 / moved)


def test_fp8_weights_use_the_8_bit_rate_where_there_is_one() -> None:
    wide = api.plan("llama-3.1-8b", prompt=10_000, gpu="H100").prefill
    narrow = api.plan("llama-3.1-8b", prompt=10_000, gpu="H100", weight_format="fp8").prefill
    old = api.plan("llama-3.1-8b", prompt=10_000, gpu="A100", weight_format="fp8").prefill
    assert wide is not None
    assert narrow is not None
    assert old is not None
    assert wide.floor_s is not None
    assert narrow.floor_s is not None
    assert old.floor_s is not None
    assert wide.bound == "compute"
    assert narrow.floor_s < 0.6 * wide.floor_s < old.floor_s


@pytest.mark.parametrize("tokens", [0, 500, 50_000])
@pytest.mark.parametrize("card", [card.name for card in CARDS[:8]])
def test_flips_are_where_the_bound_flips(tokens: int, card: str) -> None:
    shape, chosen = LLAMA_70B, setting(gpu=card)
    rates = datasheet_rates(gpu_named(card))
    found = flips(shape, tokens, chosen, rates)

    def kind(batch: int) -> str:
        return bound(step_operations(shape, tokens, chosen.storage, batch, chosen.weights), rates)

    if found.step_batch is None:
        assert kind(10**6) == "memory"
    else:
        assert kind(found.step_batch) == "compute"
        assert found.step_batch == 1 or kind(found.step_batch - 1) == "memory"


@pytest.mark.parametrize("engine", ["hf", "vllm", "llama.cpp"])
def test_every_plan_ends_with_what_is_not_modelled(engine: str) -> None:
    for shape in (LLAMA_70B, DSA, HYBRID, gqa(window=10)):
        plan = make_plan(shape, Trace(think_tokens=9), engine=engine, tensor_parallel=2)
        assert plan.notes[-1].startswith("not modelled")
        assert any(note.startswith("not modelled: ") for note in plan.notes)


def test_the_readers_notes_are_passed_on() -> None:
    shape = ModelShape("n", gqa().layers, 64, 100, None, None, "test", ("read past mtp",))
    assert "read past mtp" in make_plan(shape, Trace(think_tokens=1)).notes


def test_unknown_weights_leave_the_capacity_unknown() -> None:
    shape = ModelShape("n", gqa().layers, 64, 100, None, None, "test")
    plan = make_plan(shape, Trace(1, 1), gpu="L4")
    assert (plan.decode, plan.prefill, plan.flips) == (None, None, None)
    assert plan.max_concurrent_requests is None
    assert sum(line.bytes for line in plan.ledger.lines) == plan.ledger.total_bytes
    with pytest.raises(UserError, match="weight counts unknown"):
        api.fit(shape, gpu="L4")


def test_a_model_of_nothing_has_no_speed() -> None:
    shape = ModelShape("nothing", (LayerShape("none"),), 1, 1, 0, 0, "test")
    plan = make_plan(shape, Trace(1, 1), gpu="L4")
    assert plan.decode is not None
    assert (plan.decode.floor_s, plan.decode.tokens_per_s) == (0, None)
    assert (plan.max_concurrent_requests, plan.max_cached_tokens) == (None, None)
    assert api.fit(shape, gpu="L4").longest_tokens is None
    assert api.explain(shape, think=1, gpu="L4")


def test_an_explanation_has_the_numbers_and_ends_with_the_ledger() -> None:
    lines = api.explain("llama-3.1-70b", think=50_000, tp=4, gpu="A100", reserve_bytes=10**9)
    text = "\n".join(lines)
    for part in (
        "2 KV heads x (128 K + 128 V) elements x 16 bits / 8 = 1,024 bytes",
        "x 50,000 tokens = 51,200,000 bytes a layer",
        "x 80 = 4,096,000,000 bytes",
        "80,000,000,000 x 0.9 = 72,000,000,000 bytes usable",
        "- 35,276,853,248 weights - 1,000,000,000 reserve = 35,723,146,752 bytes for the cache",
        "= 8.72: 8 whole requests",
    ):
        assert part in text
    assert lines[-1].split() == ["total", "80,000,000,000", "80", "GB"]
    api.explain(HYBRID, think=3)
    api.explain(DSA, think=3, engine="vllm", kv_format="int4")


def test_fit_needs_a_card_and_answers_both_ways() -> None:
    with pytest.raises(UserError, match="--gpu"):
        api.fit("llama-3.1-8b", think=5)
    fit = api.fit("llama-3.1-8b", prompt=100, think=1000, gpu="L4", batch=2)
    # 24e9 * 0.9 - 16,060,522,496 = 5,539,477,504; a token is 131,072 bytes
    assert fit.longest_tokens == 5_539_477_504 // 2 // 131_072
    assert fit.longest_think_tokens == fit.longest_tokens - 100
    assert fit.most_requests == 5_539_477_504 // (1100 * 131_072)


def test_ranks_that_do_not_divide_the_query_heads_are_noted() -> None:
    """SmolLM2 has 9 query and 3 KV heads: 6 ranks can copy KV heads, and no engine splits 9 by 6."""
    said = [" ".join(api.plan("smollm2-135m", think=10, tp=n).notes) for n in (3, 6)]
    assert ["do not divide the query heads" in notes for notes in said] == [False, True]
