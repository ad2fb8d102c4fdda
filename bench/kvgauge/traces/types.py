"""Trace: what one request does over time, in tokens."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError

MAX_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class Trace:
    """One request: a prompt, the thinking, the answer.

    `depth_tokens` is what the cache holds once all of it is cached; a decode step at that depth
    reads that many tokens.
    """

    prompt_tokens: int = 0
    think_tokens: int = 0
    answer_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "think_tokens", "answer_tokens"):
            value = getattr(self, name)
            if not 0 <= value <= MAX_TOKENS:
                raise UserError(f"{name}={value}: must be between 0 and {MAX_TOKENS}")

    @property
    def depth_tokens(self) -> int:
        """All tokens of the trace."""
        return self.prompt_tokens + self.think_tokens + self.answer_tokens
