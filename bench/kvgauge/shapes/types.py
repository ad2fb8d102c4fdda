"""What a model is to a KV cache: a stack of layers, each holding something for each token or once.

Shapes are facts, checked when they are made; all arithmetic on them is in `kvgauge.formula`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from typing import Any, Literal

from kvgauge.errors import UserError

LayerKind = Literal["full", "sliding", "chunked", "mla", "linear", "ssm", "none"]
Attention = Literal["mha", "mqa", "gqa", "mla", "hybrid", "none"]

MAX_LAYERS = 10_000
MAX_DIM = 1 << 24
MAX_STATE_ELEMENTS = 1 << 32


@dataclass(frozen=True, slots=True)
class StatePart:
    """One tensor of a constant state: `elements` of `bits` each, whatever the length."""

    name: Literal["conv", "recurrent"]
    elements: int
    bits: int

    def __post_init__(self) -> None:
        if not 0 <= self.elements <= MAX_STATE_ELEMENTS or self.bits not in (8, 16, 32, 64):
            raise UserError(f"state {self.name}: {self.elements} elements of {self.bits} bits")


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer of the stack.

    `full`, `sliding` and `chunked` layers store K `[kv_heads, tokens, k_dim]` and V
    `[kv_heads, tokens, v_dim]`, the latter two for at most `window` tokens. `mla` layers store one
    latent `[tokens, latent_dim + rope_dim]` that serves as K and V; their `k_dim` and `v_dim` are those of
    the heads that a prefill may expand it to, 0 where not stated. `linear` and `ssm` layers hold
    `state` whatever the length. `none` holds nothing. Beside K and V or the latent a layer may store
    one indexer key of `index_dim` elements a token (DeepSeek sparse attention). A `shared` layer
    stores nothing and reads what an earlier layer of the same kind stored.
    """

    kind: LayerKind
    q_heads: int = 0
    kv_heads: int = 0
    k_dim: int = 0
    v_dim: int = 0
    window: int | None = None
    latent_dim: int = 0
    rope_dim: int = 0
    index_dim: int = 0
    state: tuple[StatePart, ...] = ()
    shared: bool = False

    def __post_init__(self) -> None:
        for name in (
            "q_heads",
            "kv_heads",
            "k_dim",
            "v_dim",
            "latent_dim",
            "rope_dim",
            "index_dim",
        ):
            value = getattr(self, name)
            if not 0 <= value <= MAX_DIM:
                raise UserError(f"layer {name}={value}: must be between 0 and {MAX_DIM}")
        if self.kind in ("full", "sliding", "chunked"):
            self._check_heads()
        if self.kind in ("sliding", "chunked") and (self.window is None or self.window < 1):
            raise UserError(f"a {self.kind} layer needs a window of at least 1 token")
        if self.kind == "mla" and self.latent_dim < 1:
            raise UserError("an mla layer needs latent_dim of at least 1")

    def _check_heads(self) -> None:
        if min(self.q_heads, self.kv_heads, self.k_dim, self.v_dim) < 1:
            raise UserError(f"a {self.kind} layer needs q_heads, kv_heads, k_dim and v_dim >= 1")
        if self.q_heads % self.kv_heads:
            raise UserError(f"q_heads={self.q_heads} is not a multiple of kv_heads={self.kv_heads}")

    @property
    def state_bytes(self) -> int:
        """Bytes of the constant state of one sequence."""
        return sum(part.elements * part.bits // 8 for part in self.state)

    def given(self) -> dict[str, Any]:
        """The facts that are not at their default."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}

    @property
    def is_attention(self) -> bool:
        """Whether the layer holds something for each token."""
        return self.kind in ("full", "sliding", "chunked", "mla")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as its cache and its weights see it.

    `params_total` counts every weight, `params_active` those that one decode step reads (a row of
    the input embedding is not counted; a tied output head is). None where the source does not say.
    Of the mixtures' `experts` a token visits `experts_per_token`; `params_routed` counts the weights of
    all of them in all layers, 0 where there are none or the source does not say.
    `notes` are the reader's remarks, one line each: what it did not count, and what it read past.
    """

    name: str
    layers: tuple[LayerShape, ...]
    hidden: int
    vocab: int
    params_total: int | None
    params_active: int | None
    source: str
    notes: tuple[str, ...] = ()
    experts: int = 0
    experts_per_token: int = 0
    params_routed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.layers) <= MAX_LAYERS:
            raise UserError(f"{len(self.layers)} layers: must be between 1 and {MAX_LAYERS}")
        if self.params_routed and not 1 <= self.experts_per_token <= self.experts:
            raise UserError(f"{self.experts_per_token} of {self.experts} experts a token")

    @property
    def attention(self) -> Attention:
        """mha, mqa, gqa or mla where all attention layers are alike; hybrid where they are not.

        `none` where no layer attends: such a stack holds a constant state at most.
        """
        kinds = {layer.kind for layer in self.layers if layer.kind != "none"}
        if not any(layer.is_attention for layer in self.layers):
            return "none"
        if kinds & {"linear", "ssm"} or len(kinds) > 1 or any(layer.state for layer in self.layers):
            return "hybrid"
        if kinds == {"mla"}:
            return "mla"
        heads = {(layer.q_heads, layer.kv_heads) for layer in self.layers if layer.is_attention}
        if all(kv == 1 and q > 1 for q, kv in heads):
            return "mqa"
        return "mha" if all(q == kv for q, kv in heads) else "gqa"

    @property
    def shape_id(self) -> str:
        """A digest of the facts (not of name and source), so that two shapes of one name differ.

        Facts at their default are left out: a fact added later renames no old shape.
        """
        facts = [[layer.given(), count] for layer, count in self.runs()]
        text = json.dumps(
            [facts, self.hidden, self.vocab], sort_keys=True, separators=(",", ":"), default=asdict
        )
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def runs(self) -> list[tuple[LayerShape, int]]:
        """Consecutive equal layers with their count, for display and for fast sums."""
        return [(layer, len(list(run))) for layer, run in groupby(self.layers)]
