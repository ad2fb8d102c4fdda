"""A cell: one point of an experiment, and its names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, Literal

CELL_VERSION = 1

Scope = Literal["attention", "step", "engine", "memory"]
CacheState = Literal["cold", "hot"]
Launch = Literal["stream", "graph"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of an experiment: parameters alone, nothing of the machine and nothing measured."""

    suite: str
    scope: Scope
    model: str
    shape_id: str
    kv_format: str
    prompt_tokens: int = 0
    think_tokens: int = 0
    answer_tokens: int = 0
    batch: int = 1
    layout: str = "contiguous"
    page_size: int | None = None
    policy: str = "all"
    backend: str | None = None
    layers_timed: int | None = None
    cache_state: CacheState = "cold"
    """Whether the last-level cache is flushed before each sample, or the step has just run."""
    launch: Launch = "stream"
    """Whether a GPU gets each kernel from the host as it comes, or all of a step as one CUDA graph."""

    @property
    def depth_tokens(self) -> int:
        """What the cache holds when the step starts."""
        return self.prompt_tokens + self.think_tokens + self.answer_tokens

    @property
    def cell_id(self) -> str:
        """A versioned hash of the parameters that are not at their default.

        Leaving defaults out means that a parameter added later renames no old cell.
        """
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {f.name: given[f.name] for f in fields(self) if given[f.name] != f.default}
        return _digest({"version": CELL_VERSION, **kept})

    def series_id(self, device_kind: str, device_name: str) -> str:
        """The cell on one kind of hardware: what a time may be compared along."""
        return _digest({"cell": self.cell_id, "kind": device_kind, "name": device_name})

    def label(self) -> str:
        """One line for people."""
        parts = [self.suite, self.model, f"{self.depth_tokens} tokens", self.kv_format]
        if self.batch > 1:
            parts.append(f"batch {self.batch}")
        if self.page_size is not None:
            parts.append(f"pages of {self.page_size}")
        if self.backend:
            parts.append(self.backend)
        if self.cache_state != "cold":
            parts.append(self.cache_state)
        if self.launch != "stream":
            parts.append(self.launch)
        return " · ".join(parts)


def _digest(value: dict[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
