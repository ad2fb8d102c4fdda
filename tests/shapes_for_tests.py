"""Small shapes that tests build by hand."""

from __future__ import annotations

from kvgauge.shapes.types import LayerShape, ModelShape


def gqa(
    layers: int = 2,
    q_heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 16,
    window: int | None = None,
    name: str = "tiny",
) -> ModelShape:
    """A Llama-like shape."""
    layer = LayerShape(
        "sliding" if window else "full", q_heads, kv_heads, head_dim, head_dim, window=window
    )
    return ModelShape(name, (layer,) * layers, 64, 100, 1000, 900, "test")


LLAMA_70B = gqa(layers=80, q_heads=64, kv_heads=8, head_dim=128, name="70b")
