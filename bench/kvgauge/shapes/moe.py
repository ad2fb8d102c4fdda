"""Mixtures of experts, as a config.json states them in the spelling of its family.

Sources: the configuration and modeling files of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvgauge.shapes import weights
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.weights import Weights

# mixtral:  num_local_experts of intermediate_size, in all layers.
# olmoe:    num_experts of intermediate_size, in all layers.
# gpt_oss:  as mixtral, with biases.
# qwen:     num_experts of moe_intermediate_size, but in mlp_only_layers; one shared expert, gated.
# deepseek: n_routed_experts of moe_intermediate_size after first_k_dense_replace; shared experts.
Kind = Literal["none", "mixtral", "olmoe", "gpt_oss", "qwen", "deepseek"]


@dataclass(frozen=True, slots=True)
class Mixture:
    """`ffn` of one expert; `shared_ffn` of the shared ones together; `dense_layers` have none."""

    experts: int = 0
    active: int = 0
    ffn: int = 0
    shared_ffn: int = 0
    dense_layers: int = 0
    shared_gate: bool = True

    def weights(self, hidden: int) -> Weights:
        """Of one layer that is a mixture."""
        routed = weights.experts(hidden, self.ffn, self.experts, self.active)
        if not self.shared_ffn:
            return routed
        gate = weights.dense(hidden if self.shared_gate else 0)
        return routed + weights.mlp(hidden, self.shared_ffn) + gate


def read(kind: Kind, fields: Fields, layers: int) -> Mixture:
    """The mixture; no experts where the family or the config has none."""
    if kind == "none":
        return Mixture()
    if kind == "deepseek":
        return _deepseek(fields, layers)
    if kind == "qwen":
        return _qwen(fields, layers)
    experts = fields.integer("num_experts" if kind == "olmoe" else "num_local_experts", low=0)
    if not experts:
        return Mixture()
    active = fields.integer("num_experts_per_tok", high=experts)
    return Mixture(experts, active, fields.integer("intermediate_size", default=0))


def _qwen(fields: Fields, layers: int) -> Mixture:
    name = "num_experts" if fields.has("num_experts") else "num_local_experts"
    experts = fields.integer(name, low=0, default=0)
    if not experts:
        return Mixture()
    step = fields.integer("decoder_sparse_step", default=1)
    dense = fields.layer_indices("mlp_only_layers", layers)
    return Mixture(
        experts,
        fields.integer("num_experts_per_tok", high=experts),
        fields.integer("moe_intermediate_size", default=0),
        fields.integer("shared_expert_intermediate_size", low=0, default=0),
        sum(i in dense or (i + 1) % step != 0 for i in range(layers)),
    )


def _deepseek(fields: Fields, layers: int) -> Mixture:
    name = "n_routed_experts" if fields.has("n_routed_experts") else "num_local_experts"
    experts = fields.integer(name, low=0, default=0)
    if not experts:
        return Mixture()
    ffn = fields.integer("moe_intermediate_size", default=0)
    shared = fields.integer("n_shared_experts", low=0, default=0)
    if fields.integer("moe_layer_freq", default=1) != 1:
        raise fields.unsupported("moe_layer_freq", "only 1, a mixture in each layer, is known")
    if fields.has("mlp_layer_types"):
        dense = sum(kind == "dense" for kind in fields.texts("mlp_layer_types", layers))
    else:
        dense = min(fields.integer("first_k_dense_replace", low=0), layers)
    active = fields.integer("num_experts_per_tok", high=experts)
    return Mixture(experts, active, ffn, shared * ffn, dense, shared_gate=False)
