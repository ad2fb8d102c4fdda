"""Weight counts: against published totals, and against transformers' own model classes."""

from __future__ import annotations

from typing import Any

import pytest

import shared_models
from kvgauge.shapes.catalogue import CATALOGUE
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.plain import Plain

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


@pytest.mark.parametrize("name", shared_models.plain_names())
def test_total_and_active_match_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    config = shared_models.raw(name)
    depth_name = "n_layer" if "n_layer" in config else "num_hidden_layers"
    # Two depths give the cost of a layer: no need to build all of 126.
    one, two = (_counts({**config, depth_name: depth}) for depth in (1, 2))
    more_layers = config[depth_name] - 1
    expected = [a + more_layers * (b - a) for a, b in zip(one, two, strict=True)]
    shape = read_config(shared_models.FOLDER / f"{name}.json")
    assert [shape.params_total, shape.params_active] == expected


def _counts(config: dict[str, Any]) -> tuple[int, int]:
    # Total and active of transformers' own model, without memory, from its named parameters.
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    with torch.device("meta"):
        made = CONFIG_MAPPING[config["model_type"]].from_dict(config)
        model: Any = AutoModelForCausalLM.from_config(made)  # type: ignore[no-untyped-call]
        model.tie_weights()
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is table
    total = active = 0
    for name, parameter in model.named_parameters():  # a tied one comes once
        count = parameter.numel()
        total += count
        if name.endswith("wpe.weight") or (parameter is table and not tied):
            continue
        if ".experts." in name:
            held = config.get("num_experts") or config["num_local_experts"]
            count = count * config["num_experts_per_tok"] // held
        active += count
    return total, active
