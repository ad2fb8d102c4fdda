"""Linear attention beside full: a constant state of a convolution and a recurrent matrix a head.

Gated delta nets (Qwen3-Next, Qwen3.5), Kimi delta attention beside MLA, lightning attention
(MiniMax-01, no convolution). Source: the modeling files of transformers, whose caches hold the
convolution's last `kernel` columns in the model's dtype and the recurrent part in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.shapes import mla, moe, weights
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.stack import Stack, attention_layer
from kvgauge.shapes.types import MAX_LAYERS, LayerShape, StatePart
from kvgauge.shapes.weights import Weights, dense, linear

_LINEAR = frozenset({"linear_attention"})
_FULL = frozenset({"full_attention", "attention"})
DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}

DELTA_NETS: dict[str, moe.Kind] = {
    "qwen3_5_moe_text": "qwen",
    "qwen3_5_text": "none",
    "qwen3_next": "qwen",
}


def linear_layers(fields: Fields, count: int, field: str = "layer_types") -> list[bool]:
    """Whether each layer is linear, from a list that names the two kinds."""
    kinds = fields.texts(field, count)
    unknown = next((kind for kind in kinds if kind not in _LINEAR | _FULL), None)
    if unknown is not None:
        raise fields.unsupported(field, f"{unknown[:40]!a} is not understood")
    return [kind in _LINEAR for kind in kinds]


@dataclass(frozen=True, slots=True)
class _Delta:
    key_dim: int
    value_dim: int
    value_heads: int
    head_v_dim: int
    kernel: int
    head_k_dim: int

    @property
    def conv_dim(self) -> int:
        return 2 * self.key_dim + self.value_dim

    def layer(self) -> LayerShape:
        recurrent = self.value_heads * self.head_k_dim * self.head_v_dim
        return LayerShape(
            "linear",
            state=(
                StatePart("conv", self.conv_dim * self.kernel, 16),
                StatePart("recurrent", recurrent, 32),
            ),
        )

    def weights(self, hidden: int) -> Weights:
        inputs = linear(hidden, self.conv_dim + self.value_dim + 2 * self.value_heads)
        small = self.conv_dim * self.kernel + 2 * self.value_heads + self.head_v_dim
        return dense(inputs + small + linear(self.value_dim, hidden))


def read_delta_net(fields: Fields) -> Stack:
    """Qwen3-Next and Qwen3.5: gated delta nets, and gated full attention in each fourth layer."""
    kind = DELTA_NETS[fields.text("model_type")]
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    hidden, vocab = fields.integer("hidden_size"), fields.integer("vocab_size")
    # The recurrent part is fp32 in transformers whatever mamba_ssm_dtype asks for.
    fields.understood("full_attention_interval", "mamba_ssm_dtype", "layer_types")
    if fields.has("layer_types"):
        is_linear = linear_layers(fields, count)
    else:
        interval = fields.integer("full_attention_interval", default=4)
        is_linear = [bool((i + 1) % interval) for i in range(count)]
    delta = _delta(fields)
    full = attention_layer(fields, head_dim=256)
    layers = tuple(delta.layer() if flag else full for flag in is_linear)
    mixture = moe.read(kind, fields, count)
    mixed = count - mixture.dense_layers if mixture.experts else 0
    gates = dense(linear(hidden, full.q_heads * full.k_dim))
    bias = fields.flag("attention_bias", default=False)
    heads = weights.attention(
        hidden,
        full.q_heads,
        full.kv_heads,
        full.k_dim,
        qk_norm="head",
        qkv_bias=bias,
        out_bias=bias,
    )
    if bias:
        gates += dense(full.q_heads * full.k_dim)
    found = weights.embedding(hidden, vocab, tied=fields.flag("tie_word_embeddings", default=False))
    found += dense(hidden + 2 * hidden * count)
    found += delta.weights(hidden) * sum(is_linear) + (heads + gates) * (count - sum(is_linear))
    found += mixture.weights(hidden) * mixed
    if mixed < count:
        found += weights.mlp(hidden, fields.integer("intermediate_size")) * (count - mixed)
    return Stack(layers, hidden, vocab, found)


def _delta(fields: Fields) -> _Delta:
    k_dim, v_dim = fields.integer("linear_key_head_dim"), fields.integer("linear_value_head_dim")
    v_heads = fields.integer("linear_num_value_heads")
    kernel = fields.integer("linear_conv_kernel_dim")
    key_dim = fields.integer("linear_num_key_heads") * k_dim
    return _Delta(key_dim, v_heads * v_dim, v_heads, v_dim, kernel, k_dim)


def read_kimi(fields: Fields) -> Stack:
    """Kimi-Linear: delta attention with convolved Q, K and V, and MLA without positions."""
    count = fields.integer("num_hidden_layers", high=MAX_LAYERS)
    fields.understood("mla_use_nope")  # without positions the rotary part is stored all the same
    inside = fields.nested("linear_attn_config")
    if inside is not None:
        heads, dim = inside.integer("num_heads"), inside.integer("head_dim")
        kernel = inside.integer("short_conv_kernel_size")
    else:
        heads, dim = fields.integer("linear_num_heads"), fields.integer("linear_head_dim")
        kernel = fields.integer("linear_conv_kernel_dim")
    if fields.has("layer_types"):
        is_linear = linear_layers(fields, count)
    elif inside is None:
        raise fields.error("layer_types", "missing, must name the layers that are linear")
    else:  # counted from 1
        full = inside.layer_indices("full_attn_layers", count + 1)
        delta = inside.layer_indices("kda_layers", count + 1)
        if full & delta or full | delta != set(range(1, count + 1)):
            raise inside.error("kda_layers", "must name with full_attn_layers each layer once")
        is_linear = [i + 1 in delta for i in range(count)]
    conv = StatePart("conv", 3 * heads * dim * kernel, 16)
    state = LayerShape("linear", state=(conv, StatePart("recurrent", heads * dim * dim, 32)))
    latent = mla.layer(fields)
    layers = tuple(state if flag else latent for flag in is_linear)
    return Stack(layers, fields.integer("hidden_size"), fields.integer("vocab_size"))
