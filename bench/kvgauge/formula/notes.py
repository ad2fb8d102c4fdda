"""What a plan says beside its numbers: the conventions that shaped them, and what is not modelled."""

from __future__ import annotations

from kvgauge.formula.engines import HF
from kvgauge.formula.setting import Setting
from kvgauge.formula.stack import Counted, distinct_layers
from kvgauge.shapes.types import ModelShape


def notes(shape: ModelShape, setting: Setting) -> tuple[str, ...]:
    """The last one, or the last two, say what is not modelled."""
    layers = distinct_layers(shape)
    said = ["kv_bytes_per_token is what the next token adds at this length"]
    if any(layer.window for layer, _ in layers):
        said.append("windowed layers hold at most their window and stop growing there")
    if any(layer.kind == "mla" and not layer.k_dim for layer, _ in layers):
        said.append("prefill attends on the latent; expanding it first takes fewer operations")
    if any(layer.shared for layer, _ in layers):
        said.append("layers that share an earlier layer's cache store nothing and read it again")
    said += [
        *_storage(layers, setting),
        *_engine(layers, setting),
        *_weights(shape, setting),
        *_card(setting),
        *shape.notes,
    ]
    said.append(
        "not modelled: activations, CUDA context, allocator fragmentation, engine reservations "
        "(--reserve-gb sets them aside), communication between ranks"
    )
    if setting.engine.not_modelled:
        said.append(f"not modelled, {setting.engine.not_modelled}")
    return tuple(said)


def _storage(layers: Counted, setting: Setting) -> list[str]:
    storage, said = setting.storage, []
    if storage.page_size:
        said.append(f"bytes a request are rounded up to whole pages of {storage.page_size} tokens")
    if storage.fmt.quantized:
        said.append(f"{storage.fmt.name}: {storage.fmt.metadata}, counted")
    if storage.tensor_parallel == 1:
        return said
    kinds = {layer.kind for layer, _ in layers}
    if "mla" in kinds or any(layer.index_dim for layer, _ in layers):
        said.append("tensor parallelism does not divide MLA latents and indexer keys")
    if any(0 < layer.kv_heads < storage.tensor_parallel for layer, _ in layers):
        said.append("more ranks than KV heads: each rank holds a copy of one head")
    if any(layer.q_heads % storage.tensor_parallel for layer, _ in layers):
        said.append(
            "the ranks do not divide the query heads: the fullest rank is counted, engines refuse it"
        )
    if any(layer.state for layer, _ in layers):
        said.append(
            "constant state is divided by the ranks where they divide it, else copied whole"
        )
    said.append("decode, prefill and ledger are those of one rank")
    return said


def _engine(layers: Counted, setting: Setting) -> list[str]:
    engine, said = setting.engine, []
    if any(layer.index_dim for layer, _ in layers):
        said.append(
            f"indexer keys are stored as {engine.index_format.name}; a step is counted as reading all "
            "tokens, though sparse attention reads only its top-k of the latents"
        )
    if engine is HF:
        return said
    if setting.storage.page_size is None and engine.page_tokens:
        said.append(f"{engine.name}: room for whole multiples of {engine.page_tokens} tokens")
    if engine.window_slack and any(layer.window for layer, _ in layers):
        said.append(
            f"{engine.name}: windowed layers have room for {engine.window_slack} tokens more than "
            "their window (n_ubatch)"
        )
    if engine.state_bits and any(layer.state for layer, _ in layers):
        said.append(f"{engine.name}: constant state in {engine.state_bits} bits")
    return said


def _weights(shape: ModelShape, setting: Setting) -> list[str]:
    if shape.params_total is None:
        return ["the source does not give weight counts: no weight bytes, no decode step"]
    said = []
    if setting.weights.says:
        said.append(f"{setting.weights.name} weights: {setting.weights.says}")
    if setting.weights.bits < 16:
        said.append(
            "embeddings and norms are counted in the weight format too, though most keep 16 bits"
        )
    if shape.params_routed and setting.batch > 1:
        said.append("experts visited by a batch: expected number under uniform routing")
    if any(layer.state for layer, _ in distinct_layers(shape)):
        said.append("arithmetic of the constant state and writing it back are not counted")
    return said


def _card(setting: Setting) -> list[str]:
    if setting.gpu is None:
        return []
    said = [
        f"{setting.gpu.name}: {setting.gpu.memory_bytes:,} bytes (GB of 10^9) and dense rates; "
        f"{setting.gpu.source}"
    ]
    if setting.weights.name == "fp32" or setting.fmt.name == "fp32":
        said.append("fp32 arithmetic is counted at the 16-bit rate: the floor is low")
    return said
