"""The textbook's figures against the formula: every claim of the text, in its order.

What no KV-cache tool can judge is listed too, and said to be outside.
"""

from __future__ import annotations

from functools import lru_cache

from kvgauge.formula.claim import Claim
from kvgauge.formula.claims_cost import cost_claims
from kvgauge.formula.claims_memory import memory_claims


@lru_cache(maxsize=1)
def claims() -> tuple[Claim, ...]:
    """The table of `kvgauge claims`."""
    return (*memory_claims(), *cost_claims(), *_outside())


def _outside() -> tuple[Claim, ...]:
    rows = (
        (
            "reinforcement learning",
            "training reward models or policies by reinforcement learning",
            "It is training; this tool predicts and measures inference.",
        ),
        (
            "accuracy of prompting styles",
            "how accurate prompting styles are on large models",
            "It is a property of a model's answers; this tool counts bytes and seconds.",
        ),
    )
    return tuple(
        Claim(name, text, "outside the tool", (), (), sentence, "not computed")
        for name, text, sentence in rows
    )
