"""The inverse question: what is the longest trace, or the most requests, that a card holds?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from kvgauge.errors import UserError
from kvgauge.formula.capacity import longest_tokens
from kvgauge.formula.plan import Plan
from kvgauge.formula.setting import Setting
from kvgauge.shapes.types import ModelShape


@dataclass(frozen=True, slots=True)
class Fit:
    """`longest_tokens` is of each request of the batch; None means that any length fits.

    `longest_think_tokens` is what remains of it beside the prompt and the answer; 0 where nothing does.
    `most_requests` is of the trace as it was asked for; None where a request holds nothing.
    """

    batch: int
    longest_tokens: int | None
    longest_think_tokens: int | None
    most_requests: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def fit_of(shape: ModelShape, plan: Plan, chosen: Setting) -> Fit:
    """What fits beside the weights and the reserve; raises UserError without a card or weight counts."""
    if chosen.gpu is None:
        raise UserError("--fit: say which card holds it with --gpu NAME")
    if plan.available_bytes is None:
        raise UserError(f"{shape.name}: weight counts unknown, so what fits beside them is unknown")
    longest = longest_tokens(shape, chosen.storage, plan.available_bytes, chosen.batch)
    think = None
    if longest is not None:
        think = max(0, longest - plan.prompt_tokens - plan.answer_tokens)
    return Fit(chosen.batch, longest, think, plan.max_concurrent_requests)
