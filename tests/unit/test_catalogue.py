"""Each fact of the catalogue against the public config.json, read here and not by the reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shared_models
from kvgauge.errors import UserError
from kvgauge.shapes.catalogue import CATALOGUE, catalogue
from kvgauge.shapes.catalogue_latent import LATENT_CATALOGUE
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.resolve import resolve

SOURCES = {
    "gemma-2b": "google--gemma-2b",
    "gemma-2-27b": "google--gemma-2-27b",
    "gemma-3-1b": "google--gemma-3-1b-it",
    "gpt2": "openai--gpt2",
    "gpt-oss-20b": "openai--gpt-oss-20b",
    "gpt-oss-120b": "openai--gpt-oss-120b",
    "llama-4-scout": "meta-llama--Llama-4-Scout-17B-16E-Instruct",
    "minimax-m2.5": "MiniMaxAI--MiniMax-M2.5",
    "llama-2-7b": "meta-llama--Llama-2-7b",
    "llama-2-70b": "meta-llama--Llama-2-70b",
    "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
    "llama-3.1-405b": "meta-llama--Meta-Llama-3.1-405B",
    "llama-3.2-1b": "meta-llama--Llama-3.2-1B",
    "llama-3.2-3b": "meta-llama--Llama-3.2-3B",
    "mistral-7b-v0.1": "mistralai--Mistral-7B-v0.1",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    "mixtral-8x22b": "mistralai--Mixtral-8x22B-v0.1",
    "olmo-2-32b": "allenai--OLMo-2-32B",
    "phi-3.5-mini": "microsoft--Phi-3.5-mini",
    "phi-4-mini": "microsoft--phi-4",
    "qwen2-7b": "Qwen--Qwen2-7B",
    "qwen2.5-3b": "Qwen--Qwen2.5-3B",
    "qwen3-0.6b": "Qwen--Qwen3-0.6B",
    "qwen3-1.7b": "Qwen--Qwen3-1.7B",
    "qwen3-8b": "Qwen--Qwen3-8B",
    "qwen3-32b": "Qwen--Qwen3-32B",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    "qwen3-coder-480b-a35b": "Qwen--Qwen3-Coder-480B-A35B-Instruct",
    "smollm2-135m": "HuggingFaceTB--SmolLM2-135M",
    "starcoder2-7b": "bigcode--starcoder2-7b",
    "tinyllama-1.1b": "TinyLlama--TinyLlama-1.1B-Chat-v1.0",
}


def test_every_line_has_its_source() -> None:
    assert set(SOURCES) == set(CATALOGUE)


@pytest.mark.parametrize("name", SOURCES)
def test_facts_are_those_of_the_raw_config(name: str) -> None:
    raw = shared_models.raw(SOURCES[name])
    raw = raw.get("text_config", raw)
    facts = CATALOGUE[name]
    heads = _first(raw, "num_attention_heads", "n_head")
    hidden = _first(raw, "hidden_size", "n_embd")
    assert facts.hidden == hidden
    assert facts.q_heads == heads
    assert facts.layers == _first(raw, "num_hidden_layers", "n_layer")
    assert facts.kv_heads == raw.get("num_key_value_heads", heads)
    assert facts.head_dim == raw.get("head_dim", hidden // heads)
    ffn = raw.get("intermediate_size_mlp", raw.get("intermediate_size", 4 * hidden))
    assert facts.ffn == ffn
    assert facts.vocab == raw["vocab_size"]
    tied_unless_stated = raw["model_type"].startswith(("gemma", "starcoder2", "gpt2"))
    assert facts.tied == raw.get("tie_word_embeddings", tied_unless_stated)
    switched_on = raw.get("use_sliding_window", True)
    window = raw.get("attention_chunk_size", raw.get("sliding_window"))
    assert facts.window == (window if switched_on else None)
    assert facts.experts == raw.get("num_experts", raw.get("num_local_experts", 0))
    assert facts.active_experts == raw.get("num_experts_per_tok", 0)
    if facts.experts:
        assert facts.expert_ffn == raw.get("moe_intermediate_size", raw["intermediate_size"])
    assert facts.position_rows == raw.get("n_positions", 0)


@pytest.mark.parametrize("name", SOURCES)
def test_catalogue_and_reader_make_the_same_shape(name: str) -> None:
    shared_models.raw(SOURCES[name])
    read = read_config(shared_models.FOLDER / f"{SOURCES[name]}.json")
    named = resolve(name)
    assert named.shape_id == read.shape_id
    assert (named.params_total, named.params_active) == (read.params_total, read.params_active)


def test_the_textbook_model() -> None:
    shape = resolve("llama-3.1-70b")
    per_token = sum(layer.kv_heads * (layer.k_dim + layer.v_dim) for layer in shape.layers)
    assert 2 * per_token == 327_680  # bytes in fp16


def test_list_and_names() -> None:
    names = [shape.name for shape in catalogue()]
    assert names == sorted({*CATALOGUE, *LATENT_CATALOGUE})
    assert resolve("Llama-3.1-8B").name == "llama-3.1-8b"


def test_a_hubs_name_leads_to_the_catalogues() -> None:
    with pytest.raises(UserError, match=r"no such file or folder; the catalogue has llama-3\.1-8b"):
        resolve("meta-llama/Llama-3.1-8B")


def test_unknown_name_has_close_matches_and_says_that_a_path_works() -> None:
    with pytest.raises(UserError, match=r"llama-3\.1-8b.*path") as caught:
        resolve("llama-3.1-8")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="kvgauge models"):
        resolve("zzzzzz\n" * 1000)
    with pytest.raises(UserError, match="no such file"):
        resolve("some/where/config.json")
    with pytest.raises(UserError):
        resolve("")


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without a config\.json"):
        resolve(str(tmp_path))


def _first(raw: dict[str, Any], *names: str) -> int:
    return next(int(raw[name]) for name in names if name in raw)


LATENT_SOURCES = {
    "deepseek-r1": "deepseek-ai--DeepSeek-R1",
    "deepseek-v2-lite": "deepseek-ai--DeepSeek-V2-Lite",
    "deepseek-v3": "deepseek-ai--DeepSeek-V3",
}


@pytest.mark.parametrize("name", LATENT_CATALOGUE)
def test_latent_facts_are_those_of_the_raw_config(name: str) -> None:
    raw = shared_models.raw(LATENT_SOURCES[name])
    assert LATENT_CATALOGUE[name].items() <= raw.items()
    whole = read_config(shared_models.FOLDER / f"{LATENT_SOURCES[name]}.json")
    named = resolve(name)
    assert named.layers == whole.layers
    assert (named.params_total, named.vocab) == (whole.params_total, whole.vocab)
    assert named.params_total is not None
