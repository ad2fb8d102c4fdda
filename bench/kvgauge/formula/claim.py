"""Claim: one of the textbook's figures, what the formula makes of it, and a verdict.

The stated number is a claim's only constant: all other figures are computed, and so are the verdicts on
bytes: `exact` where the numbers are equal, `rounded` where the stated one follows from the text's own 320
KB taken as 320,000 bytes, else `wrong`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

from kvgauge.formats import kv_format
from kvgauge.formula.held import Storage, growth_bytes, held_bytes
from kvgauge.shapes.catalogue import shape_named
from kvgauge.shapes.types import ModelShape

ClaimVerdict = Literal[
    "exact", "rounded", "wrong", "lower bound", "holds only if", "outside the tool"
]
Standing = Literal["arithmetic", "computed, not measured", "not computed"]

MODEL = "llama-3.1-70b"  # the text's 80 layers, 8 KV heads and head_dim 128
FP16 = Storage(kv_format("fp16"))
ROUNDED_TOKEN_BYTES = 320_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its unit: bytes, tokens, requests, x, %, $, s or cards."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Claim:
    """`sentence` says what the verdict rests on; of `holds only if`, it completes the verdict."""

    name: str
    text: str
    verdict: ClaimVerdict
    stated: tuple[Figure, ...]
    computed: tuple[Figure, ...]
    sentence: str
    standing: Standing = "arithmetic"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def figure(self, name: str) -> float:
        """The computed figure of that name."""
        return next(each.value for each in self.computed if each.name == name)


@lru_cache(maxsize=1)
def text_model() -> ModelShape:
    """The model that the text computes with."""
    return shape_named(MODEL)


def cache_bytes(tokens: int) -> int:
    """What one request of `tokens` holds in fp16."""
    return held_bytes(text_model(), tokens, FP16)


def token_cost() -> int:
    """What one token adds."""
    return growth_bytes(text_model(), 0, FP16)


def verdict_on_bytes(stated: float, step: float, tokens: int) -> ClaimVerdict:
    """Of a stated size whose last digit is worth `step` bytes."""
    computed = cache_bytes(tokens)
    if stated == computed:
        return "exact"
    rounded = tokens * ROUNDED_TOKEN_BYTES
    return "rounded" if abs(stated - rounded) < step else "wrong"


def worst(verdicts: list[ClaimVerdict]) -> ClaimVerdict:
    """Of a claim with several numbers: wrong before rounded before exact."""
    order: tuple[ClaimVerdict, ...] = ("wrong", "rounded", "exact")
    return next(verdict for verdict in order if verdict in verdicts)
