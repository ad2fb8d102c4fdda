"""What a card holds, against figures worked out by hand."""

from __future__ import annotations

import pytest

from kvgauge.errors import UserError
from kvgauge.formats import kv_format
from kvgauge.formula.capacity import (
    available_bytes,
    longest_tokens,
    max_cached_tokens,
    max_requests,
    usable_bytes,
)
from kvgauge.formula.hardware import CARDS, gpu_named
from kvgauge.formula.held import Storage
from kvgauge.formula.plan import make_plan
from kvgauge.formula.weights import weight_format
from kvgauge.shapes.catalogue import shape_named
from kvgauge.traces.types import Trace
from shapes_for_tests import LLAMA_70B, gqa

TEXTBOOK = 16_384_000_000  # 50,000 tokens of 327,680 bytes
FP16 = Storage(kv_format("fp16"))


@pytest.mark.parametrize(
    ("card", "utilization", "requests"),
    [(80 * 10**9, 1.0, 4), (80 * 2**30, 1.0, 5), (80 * 10**9, 0.9, 4), (80 * 2**30, 0.9, 4)],
)
def test_the_textbooks_card_of_80_gb_without_weights(
    card: int, utilization: float, requests: int
) -> None:
    assert max_requests(available_bytes(card, 0, utilization), TEXTBOOK) == requests


def test_none_fits_beside_the_16_bit_weights_and_some_do_over_four_cards() -> None:
    shape, trace = shape_named("llama-3.1-70b"), Trace(think_tokens=50_000)
    one = make_plan(shape, trace, gpu="A100-80GB")
    assert (one.available_bytes, one.max_concurrent_requests, one.max_cached_tokens) == (0, 0, 0)
    four = make_plan(shape, trace, gpu="A100-80GB", tensor_parallel=4)
    # 72e9 - 141,107,412,992 / 4 = 36,723,146,752; a request takes 4,096,000,000 of it on each card
    assert four.weight_bytes_per_gpu == 35_276_853_248
    assert four.available_bytes == 36_723_146_752
    assert four.max_concurrent_requests == 8
    assert four.max_cached_tokens == 36_723_146_752 // 81_920


def test_the_reserve_is_set_aside() -> None:
    assert available_bytes(100, 20, 0.5, 10) == 20
    assert available_bytes(100, 60, 0.5, 10) == 0
    with pytest.raises(UserError, match="reserve"):
        available_bytes(100, 0, 0.5, -1)


@pytest.mark.parametrize("utilization", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_utilization_outside_is_refused(utilization: float) -> None:
    with pytest.raises(UserError, match="utilization"):
        usable_bytes(100, utilization)


def test_a_utilization_is_taken_as_it_is_written() -> None:
    assert usable_bytes(10**15, 0.1) == 10**14
    assert usable_bytes(80 * 10**9, 0.9) == 72 * 10**9


def test_a_longest_trace_by_hand() -> None:
    row = 327_680
    assert longest_tokens(LLAMA_70B, FP16, 10 * row) == 10
    assert longest_tokens(LLAMA_70B, FP16, 10 * row - 1) == 9
    assert longest_tokens(LLAMA_70B, FP16, 10 * row, batch=3) == 3
    assert longest_tokens(LLAMA_70B, Storage(kv_format("fp16"), 16), 40 * row) == 32
    assert longest_tokens(LLAMA_70B, FP16, row - 1) == 0
    assert longest_tokens(gqa(window=10), FP16, 10**6) is None


def test_cached_tokens_at_length_zero_and_of_a_model_without_a_cache() -> None:
    assert max_cached_tokens(LLAMA_70B, 0, FP16, 327_680 * 7 + 1) == 7
    assert max_requests(100, 0) is None


@pytest.mark.parametrize(
    ("written", "name"),
    [("a100-80gb", "A100-SXM-80GB"), ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
     ("NVIDIA H100 80GB HBM3", "H100-SXM"), ("NVIDIA H100 PCIe", "H100-PCIe"),
     ("NVIDIA GeForce RTX 4090", "RTX-4090"), ("AMD Instinct MI300X", "MI300X"), ("l4", "L4"),
     ("NVIDIA L40S", "L40S"), ("NVIDIA H200", "H200"), ("rtx 5090", "RTX-5090")],
)  # fmt: skip
def test_a_card_by_the_names_that_it_goes_by(written: str, name: str) -> None:
    assert gpu_named(written).name == name


@pytest.mark.parametrize(
    ("written", "says"), [("H10", "H100"), ("RTX 4099", "RTX-4090"), ("zzzz", "MI300X")]
)
def test_an_unknown_card_has_close_names(written: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        gpu_named(written)


def test_every_card_has_sane_figures_and_a_source() -> None:
    assert len({card.name for card in CARDS}) == len(CARDS)
    for card in CARDS:
        assert 24e9 <= card.memory_bytes <= 300e9
        assert 300e9 <= card.bytes_per_s <= 8e12
        assert 50e12 <= card.fp16_flops_per_s <= 3e15
        if card.fp8_flops_per_s is not None:  # twice the 16-bit rate, to a datasheet's rounding
            assert card.fp8_flops_per_s / card.fp16_flops_per_s == pytest.approx(2, rel=0.03)
        assert "NVIDIA" in card.source or "AMD" in card.source


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fp32", 1024), ("bf16", 512), ("fp8", 256), ("int8", 256), ("int4", 128 + 5),
     ("mxfp4", 128 + 8), ("nvfp4", 128 + 16)],
)  # fmt: skip
def test_weights_of_256_parameters(name: str, expected: int) -> None:
    assert weight_format(name).bytes_of(256) == expected
