"""Plain: decoders whose every layer stores K and V heads, full or in one sliding window.

`Plain` states the facts of such a model; a config reader or a catalogue line fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.shapes import weights
from kvgauge.shapes.types import LayerShape, ModelShape
from kvgauge.shapes.weights import QKNorm, Weights


@dataclass(frozen=True, slots=True)
class Plain:
    """The architecture facts; the first seven are the columns of the catalogue.

    `ffn` 0 means not known. `window` in tokens holds for the layers in `window_layers`, or for all
    where that is None; `chunked` where it is a chunk. `position_rows` is the length of a learned
    position table. Where `experts` is not 0 all layers but the `dense_layers` are mixtures of
    experts; `shared_ffn` is a gated expert that all tokens visit, behind a gate of its own
    (Qwen2-MoE) unless `shared_gate` is off. `norms` counts the norms of a layer over the hidden
    size, `sinks` adds one learned scalar a query head (gpt-oss). `counted` off: the family has
    weights that these facts do not state.
    """

    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool = False
    window: int | None = None
    window_layers: frozenset[int] | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm = "none"
    gated: bool = True
    mlp_bias: bool = False
    norm_bias: bool = False
    position_rows: int = 0
    experts: int = 0
    active_experts: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    norms: int = 2
    sinks: bool = False
    chunked: bool = False
    shared_gate: bool = True
    expert_bias: bool = False
    counted: bool = True

    def shape(self, name: str, source: str) -> ModelShape:
        """The model as its cache and its weights see it."""
        layers, count = self.stack(), self.weights()
        return weights.model(name, layers, self.hidden, self.vocab, count, source)

    def stack(self) -> tuple[LayerShape, ...]:
        """One LayerShape a layer."""
        heads = (self.q_heads, self.kv_heads, self.head_dim, self.head_dim)
        full = LayerShape("full", *heads)
        if self.window is None:
            return (full,) * self.layers
        sliding = LayerShape("chunked" if self.chunked else "sliding", *heads, window=self.window)
        if self.window_layers is None:
            return (sliding,) * self.layers
        return tuple(sliding if i in self.window_layers else full for i in range(self.layers))

    def weights(self) -> Weights | None:
        """All layers, the final norm, the embedding table or tables; None where ffn is unknown."""
        mixed_layers = self.layers - self.dense_layers if self.experts else 0
        dense_known = self.ffn or mixed_layers == self.layers
        if not (self.counted and dense_known and (self.expert_ffn or not mixed_layers)):
            return None
        norm = self.hidden * (2 if self.norm_bias else 1)
        return (
            weights.embedding(self.hidden, self.vocab, tied=self.tied)
            + Weights(self.position_rows * self.hidden, 0)
            + weights.dense(norm)
            + (self._attention() + weights.dense(self.norms * norm)) * self.layers
            + self._mlp() * (self.layers - mixed_layers)
            + self._mixture() * mixed_layers
        )

    def _attention(self) -> Weights:
        return weights.dense(self.q_heads if self.sinks else 0) + weights.attention(
            self.hidden,
            self.q_heads,
            self.kv_heads,
            self.head_dim,
            qkv_bias=self.qkv_bias,
            out_bias=self.out_bias,
            qk_norm=self.qk_norm,
        )

    def _mlp(self) -> Weights:
        return weights.mlp(self.hidden, self.ffn, gated=self.gated, bias=self.mlp_bias)

    def _mixture(self) -> Weights:
        routed = weights.experts(
            self.hidden, self.expert_ffn, self.experts, self.active_experts, bias=self.expert_bias
        )
        if not self.shared_ffn:
            return routed
        shared_gate = weights.dense(self.hidden if self.shared_gate else 0)
        return routed + weights.mlp(self.hidden, self.shared_ffn) + shared_gate
