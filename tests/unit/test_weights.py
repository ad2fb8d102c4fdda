"""Weight counts: against published totals, and against transformers' own model classes."""

from __future__ import annotations

from typing import Any

import pytest

import shared_models
from kvgauge.formats import FORMATS
from kvgauge.formula.held import Storage
from kvgauge.formula.moved import params_read, step_operations
from kvgauge.formula.plan import make_plan
from kvgauge.formula.weights import WEIGHT_FORMATS
from kvgauge.shapes.catalogue import CATALOGUE
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.plain import Plain
from kvgauge.traces.types import Trace

# As the model cards and the checkpoints' own indexes have them.
PUBLISHED_TOTALS = {
    "smollm2-135m": 134_515_008,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-32b": 32_762_123_264,
    "qwen3-8b": 8_190_735_360,
    "mixtral-8x7b": 46_702_792_704,
    "gpt2": 124_439_808,
    "llama-2-7b": 6_738_415_616,
    "mistral-7b-v0.1": 7_241_732_096,
}


@pytest.mark.parametrize(("name", "total"), PUBLISHED_TOTALS.items())
def test_total_is_the_published_one(name: str, total: int) -> None:
    assert CATALOGUE[name].shape(name, "test").params_total == total


def test_active_leaves_out_the_input_table_where_untied_only() -> None:
    untied = Plain(1, 64, 4, 2, 16, 128, 1000).shape("untied", "test")
    tied = Plain(1, 64, 4, 2, 16, 128, 1000, tied=True).shape("tied", "test")
    assert untied.params_total is not None
    assert untied.params_active == untied.params_total - 1000 * 64
    assert tied.params_active == tied.params_total == untied.params_active


def test_mixtral_reads_two_experts_of_eight() -> None:
    shape = CATALOGUE["mixtral-8x7b"].shape("mixtral", "test")
    one_expert = 3 * 4096 * 14336
    assert shape.params_total is not None
    assert shape.params_active == shape.params_total - 32 * 6 * one_expert - 32000 * 4096


def test_no_ffn_stated_means_no_count() -> None:
    assert Plain(1, 64, 4, 2, 16, 0, 1000).shape("x", "test").params_total is None


# Null in the model's own config.json, absent from this copy: transformers would fall back on 1,536.
LEFT_OUT: dict[str, dict[str, Any]] = {"deepseek-ai--DeepSeek-V2-Lite": {"q_lora_rank": None}}


@pytest.mark.parametrize("name", shared_models.names())
def test_total_and_active_match_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    import caches_of_transformers as theirs

    raw = {**shared_models.raw(name), **LEFT_OUT.get(name, {})}
    config = theirs.config_of(raw)
    if config is None:
        pytest.skip(f"transformers has no class for {raw['model_type']}")
    shape = read_config(shared_models.FOLDER / f"{name}.json")
    model = theirs.model_of(config)
    # What the whole model says of ties holds; a decoder of a larger model may come without a head.
    tied = bool(raw.get("tie_word_embeddings", getattr(config, "tie_word_embeddings", False)))
    assert [shape.params_total, shape.params_active] == _counts(model, config, tied=tied)


# Names of the numbers of experts, and of those that a token visits.
_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts")


def _counts(model: Any, config: Any, *, tied: bool) -> list[int]:
    # Total and active of transformers' own model, without memory, from its named parameters.
    model.tie_weights()
    table = model.get_input_embeddings().weight
    held = next((getattr(config, name) for name in _EXPERTS if hasattr(config, name)), 0)
    total = active = 0
    for name, parameter in model.named_parameters():  # a tied one comes once
        count = parameter.numel()
        total += count
        if name.endswith("wpe.weight") or (parameter is table and not tied):
            continue
        if ".experts." in name:
            count = count * config.num_experts_per_tok // held
        active += count
    if not tied and model.get_output_embeddings() is None:
        total, active = total + table.numel(), active + table.numel()
    return [total, active]


def test_a_batch_reads_the_experts_that_it_visits() -> None:
    mixtral = CATALOGUE["mixtral-8x7b"].shape("mixtral", "test")
    one = 3 * 4096 * 14336 * 32  # an expert in all layers
    total, active = mixtral.params_total, mixtral.params_active
    assert total is not None
    assert active is not None
    assert (mixtral.experts, mixtral.experts_per_token, mixtral.params_routed) == (8, 2, 8 * one)
    assert params_read(mixtral, 1) == active
    assert params_read(mixtral, 2) == active - 2 * one + 8 * one * 7 // 16
    everything = total - 32000 * 4096
    read = params_read(mixtral, 64)
    assert read is not None
    assert everything - 10_000 < read <= everything
    assert params_read(mixtral, 10**6) == everything
    weights = WEIGHT_FORMATS["bf16"]
    step = {
        op.name: op for op in step_operations(mixtral, 10, Storage(FORMATS["bf16"]), 64, weights)
    }
    assert step["weights"].moved_bytes == 2 * read
    assert step["weights"].flops == 2 * 64 * active
    dense = CATALOGUE["llama-3.1-8b"].shape("llama", "test")
    assert params_read(dense, 64) == dense.params_active


def test_a_plan_says_which_experts_a_batch_visits() -> None:
    mixtral = CATALOGUE["mixtral-8x7b"].shape("mixtral", "test")
    trace = Trace(think_tokens=1)
    said = "experts visited by a batch: expected number under uniform routing"
    assert said in make_plan(mixtral, trace, batch=2).notes
    assert said not in make_plan(mixtral, trace, batch=1).notes
    dense = CATALOGUE["llama-3.1-8b"].shape("llama", "test")
    assert said not in make_plan(dense, trace, batch=2).notes


@pytest.mark.parametrize("name", shared_models.names())
def test_routed_weights_are_those_of_the_experts(name: str) -> None:
    shape = read_config(shared_models.FOLDER / f"{name}.json")
    if shape.params_total is None or not shape.params_routed:
        pytest.skip("no mixture, or not counted")
    assert shape.params_active is not None
    idle = shape.params_routed * (shape.experts - shape.experts_per_token) // shape.experts
    tables = shape.params_total - shape.params_active - idle
    assert tables in (0, shape.hidden * shape.vocab)
