"""Models known by name: their architecture facts in one table, no file needed.

Source: the public config.json of each model; the tests hold every line against a copy of it.
"""

from __future__ import annotations

from dataclasses import replace

from kvgauge.shapes import mla
from kvgauge.shapes.catalogue_latent import LATENT_CATALOGUE
from kvgauge.shapes.fields import Fields
from kvgauge.shapes.plain import Plain
from kvgauge.shapes.types import ModelShape


def _mixture(facts: Plain, experts: int, active: int, expert_ffn: int) -> Plain:
    return replace(facts, experts=experts, active_experts=active, expert_ffn=expert_ffn)


def _every(n: int, layers: int) -> frozenset[int]:
    # The layers with a window, where each n-th has none.
    return frozenset(i for i in range(layers) if (i + 1) % n)


def _gpt_oss(layers: int, experts: int) -> Plain:
    facts = Plain(
        layers, 2880, 64, 8, 64, 2880, 201088, window=128, window_layers=_every(2, layers),
        qkv_bias=True, out_bias=True, mlp_bias=True, sinks=True, expert_bias=True,
    )  # fmt: skip
    return _mixture(facts, experts, 4, 2880)


_GEMMA2 = Plain(
    46, 4608, 32, 16, 128, 36864, 256000, tied=True, window=4096, window_layers=_every(2, 46),
    norms=4,
)  # fmt: skip
_GEMMA3 = Plain(
    26, 1152, 4, 1, 256, 6912, 262144, tied=True, window=512, window_layers=_every(6, 26), norms=4,
    qk_norm="head",
)  # fmt: skip
_LLAMA4 = Plain(
    48, 5120, 40, 8, 128, 16384, 202048, window=8192, window_layers=_every(4, 48), chunked=True,
    shared_ffn=8192, shared_gate=False,
)  # fmt: skip
_STARCODER2 = Plain(
    32, 4608, 36, 4, 128, 18432, 49152, tied=True, window=4096, qkv_bias=True, out_bias=True,
    mlp_bias=True, gated=False, norm_bias=True,
)  # fmt: skip
_GPT2 = Plain(
    12, 768, 12, 12, 64, 3072, 50257, tied=True, qkv_bias=True, out_bias=True, mlp_bias=True,
    gated=False, norm_bias=True, position_rows=1024,
)  # fmt: skip

CATALOGUE: dict[str, Plain] = {
    #                 layers hidden q_heads kv_heads head_dim ffn vocab
    "gemma-2b": Plain(18, 2048, 8, 1, 256, 16384, 256000, tied=True),
    "gemma-2-27b": _GEMMA2,
    "gemma-3-1b": _GEMMA3,
    "gpt2": _GPT2,
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "llama-2-7b": Plain(32, 4096, 32, 32, 128, 11008, 32000),
    "llama-2-70b": Plain(80, 8192, 64, 8, 128, 28672, 32000),
    "llama-3.1-8b": Plain(32, 4096, 32, 8, 128, 14336, 128256),
    "llama-3.1-70b": Plain(80, 8192, 64, 8, 128, 28672, 128256),
    "llama-3.1-405b": Plain(126, 16384, 128, 8, 128, 53248, 128256),
    "llama-3.2-1b": Plain(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "llama-3.2-3b": Plain(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "llama-4-scout": _mixture(_LLAMA4, 16, 1, 8192),
    "minimax-m2.5": _mixture(
        Plain(62, 3072, 48, 8, 128, 1536, 200064, qk_norm="all"), 256, 8, 1536
    ),
    "mistral-7b-v0.1": Plain(32, 4096, 32, 8, 128, 14336, 32000, window=4096),
    "mixtral-8x7b": _mixture(Plain(32, 4096, 32, 8, 128, 14336, 32000), 8, 2, 14336),
    "mixtral-8x22b": _mixture(Plain(56, 6144, 48, 8, 128, 16384, 32000), 8, 2, 16384),
    "olmo-2-32b": Plain(64, 5120, 40, 8, 128, 27648, 100352, qk_norm="all"),
    "phi-3.5-mini": Plain(32, 3072, 32, 32, 96, 8192, 32064, window=262144),
    "phi-4-mini": Plain(32, 3072, 24, 8, 128, 8192, 200064, tied=True, window=262144),
    "qwen2-7b": Plain(28, 3584, 28, 4, 128, 18944, 152064, qkv_bias=True),
    "qwen2.5-3b": Plain(36, 2048, 16, 2, 128, 11008, 151936, tied=True, qkv_bias=True),
    "qwen3-0.6b": Plain(28, 1024, 16, 8, 128, 3072, 151936, tied=True, qk_norm="head"),
    "qwen3-1.7b": Plain(28, 2048, 16, 8, 128, 6144, 151936, tied=True, qk_norm="head"),
    "qwen3-8b": Plain(36, 4096, 32, 8, 128, 12288, 151936, qk_norm="head"),
    "qwen3-32b": Plain(64, 5120, 64, 8, 128, 25600, 151936, qk_norm="head"),
    "qwen3-30b-a3b": _mixture(
        Plain(48, 2048, 32, 4, 128, 6144, 151936, qk_norm="head"), 128, 8, 768
    ),
    "qwen3-235b-a22b": _mixture(
        Plain(94, 4096, 64, 4, 128, 12288, 151936, qk_norm="head"), 128, 8, 1536
    ),
    "qwen3-coder-480b-a35b": _mixture(
        Plain(62, 6144, 96, 8, 128, 8192, 151936, qk_norm="head"), 160, 8, 2560
    ),
    "smollm2-135m": Plain(30, 576, 9, 3, 64, 1536, 49152, tied=True),
    "starcoder2-7b": _STARCODER2,
    "tinyllama-1.1b": Plain(22, 2048, 32, 4, 64, 5632, 32000),
}


NAMES = tuple(sorted({*CATALOGUE, *LATENT_CATALOGUE}))
"""All that `shape_named` knows."""


def catalogue() -> list[ModelShape]:
    """All shapes, by name."""
    return [shape_named(name) for name in NAMES]


def shape_named(name: str) -> ModelShape:
    """The shape of one line; KeyError where there is none."""
    if name in LATENT_CATALOGUE:
        return mla.read(Fields(name, LATENT_CATALOGUE[name])).shape(name, "catalogue")
    return CATALOGUE[name].shape(name, "catalogue")
