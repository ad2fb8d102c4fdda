"""`results/layouts.md`: what each config's layers hold, and what transformers' own cache holds.

    python tests/campaigns/layouts_table.py ../shared/models > results/layouts.md

The oracle is a forward pass of the real model class, at full size on the meta device.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import transformers

import caches_of_transformers as theirs
from kvgauge.formats import kv_format
from kvgauge.formula.held import Storage, layer_bytes, marginal_bytes, state_bytes
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.types import ModelShape

BF16 = kv_format("bf16")
DEEP_TOKENS = 1_000_000


def main(folder: Path) -> None:
    """Print the table."""
    print("# Layouts against transformers\n")
    print(
        f"Bytes in bf16 of each config beside transformers {transformers.__version__}'s own cache after "
        "a forward pass of the real model class (full size, meta device) over `n` tokens. `equal` means "
        "layer by layer. Made by `tests/campaigns/layouts_table.py`.\n"
    )
    print(
        "| model | layers | bytes a token, at 0 and at 1M | state | window | n | formula | oracle |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        print(_row(path))


def _row(path: Path) -> str:
    shape = read_config(path)
    windows = sorted({layer.window for layer in shape.layers if layer.window})
    n = (windows[-1] if windows else 0) + 7
    kinds = ", ".join(f"{c} {kind}" for kind, c in Counter(x.kind for x in shape.layers).items())
    ours = [layer_bytes(layer, n, Storage(BF16)) for layer in shape.layers]
    cells = [
        path.stem.replace("--", "/"),
        kinds,
        f"{marginal_bytes(shape, 0, BF16):,} and {marginal_bytes(shape, DEEP_TOKENS, BF16):,}",
        f"{state_bytes(shape):,}",
        ", ".join(f"{w:,}" for w in windows) or "none",
        f"{n:,}",
        f"{sum(ours):,}",
        _oracle(path, shape, n, ours),
    ]
    return f"| {' | '.join(cells)} |"


def _oracle(path: Path, shape: ModelShape, n: int, ours: list[int]) -> str:
    config = theirs.config_of(json.loads(path.read_bytes()))
    if config is None:
        return "no class in transformers"
    held = [
        theirs.bytes_of(layer)
        for layer in theirs.layers_of(theirs.filled(theirs.model_of(config), n))
    ]
    if held == ours:
        return "equal"
    less = [
        layer_bytes(x, min(n, x.window - 1) if x.window else n, Storage(BF16)) for x in shape.layers
    ]
    if held == less:
        return f"{sum(held):,}: window - 1 tokens in windowed layers, else equal"
    return f"**differs**: {sum(held):,}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
