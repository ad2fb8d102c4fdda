"""What the formula says of a log's figure: bytes of K, of V or of both, under one set of assumptions.

`Case` is that set; a hypothesis is a Case with one thing changed. K and V may have formats of their own,
and a log may print them apart; everything else is `kvgauge.formula.held`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvgauge.audit.types import EngineName
from kvgauge.formats import KVFormat
from kvgauge.formula.engines import HF, LLAMA_CPP, VLLM, Engine
from kvgauge.formula.held import Storage, kv_heads_per_rank, layer_state_bytes, row_bytes
from kvgauge.formula.stack import distinct_layers
from kvgauge.shapes.types import LayerShape, ModelShape

Part = Literal["k", "v", "kv", "index"]
LayerSet = Literal["all", "full", "windowed"]
LAYER_SETS: tuple[LayerSet, ...] = ("all", "full", "windowed")

_ENGINES: dict[EngineName, Engine] = {"llama.cpp": LLAMA_CPP, "vllm": VLLM}


@dataclass(frozen=True, slots=True)
class Case:
    """The assumptions under which a figure is computed."""

    shape: ModelShape
    engine: EngineName
    k_format: KVFormat
    v_format: KVFormat
    tp: int = 1
    layer_set: LayerSet = "all"
    latent_twice: bool = False
    """Whether an MLA layer stores its latent a second time, as V."""
    expanded: bool = False
    """Whether an MLA layer stores K and V of every query head instead of its latent."""

    def formatted(self, fmt: KVFormat) -> Case:
        """The same with K and V in one format."""
        return replace(self, k_format=fmt, v_format=fmt)

    def storage(self, fmt: KVFormat) -> Storage:
        """For `kvgauge.formula.held`."""
        return Storage(fmt, None, self.tp, _ENGINES.get(self.engine, HF))


def layers_of(case: Case) -> list[tuple[LayerShape, int]]:
    """The layers that the figure counts and that store something for each token."""
    return [
        (layer, count)
        for layer, count in distinct_layers(case.shape)
        if layer.is_attention and not layer.shared and _in_set(layer, case.layer_set)
    ]


def layer_total(case: Case) -> int:
    """How many layers those are."""
    return sum(count for _, count in layers_of(case))


def token_bytes(case: Case, part: Part = "kv") -> int:
    """Bytes of one token over those layers on one rank, each of them keeping it."""
    return sum(count * _layer_part(layer, case, part) for layer, count in layers_of(case))


def metadata_bytes(case: Case, part: Part) -> int:
    """Of those bytes, the scales and zero points."""
    bare = replace(
        case,
        k_format=KVFormat("elements alone", case.k_format.bits),
        v_format=KVFormat("elements alone", case.v_format.bits),
    )
    return token_bytes(case, part) - token_bytes(bare, part)


def state_part_bytes(case: Case, name: Literal["conv", "recurrent"]) -> int:
    """One sequence's constant state of that name over all layers on one rank."""
    storage = case.storage(case.k_format)
    total = 0
    for layer, count in distinct_layers(case.shape):
        parts = tuple(part for part in layer.state if part.name == name)
        total += count * layer_state_bytes(replace(layer, state=parts), storage)
    return total


def expandable(shape: ModelShape) -> bool:
    """Whether there are MLA layers, and all state the K and V that their latent stands for."""
    latent = [layer for layer, _ in distinct_layers(shape) if layer.kind == "mla"]
    return bool(latent) and all(min(x.q_heads, x.k_dim, x.v_dim) > 0 for x in latent)


def windowed(shape: ModelShape) -> bool:
    """Whether some layers stop growing at a window."""
    return any(layer.window is not None for layer, _ in distinct_layers(shape))


def stateful(shape: ModelShape) -> bool:
    """Whether some layers hold a state instead of tokens."""
    return any(layer.state for layer, _ in distinct_layers(shape))


def _in_set(layer: LayerShape, layer_set: LayerSet) -> bool:
    return layer_set == "all" or (layer.window is not None) == (layer_set == "windowed")


def _layer_part(layer: LayerShape, case: Case, part: Part) -> int:
    k_row = row_bytes(layer, case.storage(case.k_format))
    if part == "index":
        return k_row.index
    # llama.cpp prints the indexer's cache on lines of its own.
    index = 0 if case.engine == "llama.cpp" else k_row.index
    if layer.kind == "mla" and not case.expanded:
        again = case.v_format.row_bytes(layer.latent_dim) if case.latent_twice else 0
        latent = k_row.elements + k_row.metadata
        return {"k": latent, "v": again, "kv": latent + again + index}[part]
    heads = kv_heads_per_rank(layer.q_heads if layer.kind == "mla" else layer.kv_heads, case.tp)
    k, v = (
        heads * case.k_format.row_bytes(layer.k_dim),
        heads * case.v_format.row_bytes(layer.v_dim),
    )
    return {"k": k, "v": v, "kv": k + v + index}[part]
