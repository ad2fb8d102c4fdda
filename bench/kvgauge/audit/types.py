"""The nouns of an audit: a fact read from a log, a finding on it, the ledger of the bytes, the audit."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

EngineName = Literal["llama.cpp", "vllm", "sglang", "tensorrt-llm"]
Verdict = Literal["agree", "disagree", "cannot tell"]

# One vocabulary for all engines: what a fact is, whatever words the engine prints it in.
What = Literal[
    # figures in bytes
    "kv_bytes", "k_bytes", "v_bytes", "buffer_bytes", "state_bytes", "conv_bytes", "recurrent_bytes",
    "available_bytes", "needed_bytes",
    # counts
    "tokens", "cells", "blocks", "blocks_per_request", "concurrency", "request_tokens", "layers",
    "model_layers", "streams", "states", "state_copies", "window_tokens", "max_total_tokens",
    "context_tokens",
    # settings
    "tp", "dp", "dp_attention", "pp", "kv_format", "k_format", "v_format", "model_dtype", "block_tokens",
    "max_tokens", "model", "cache_kind", "start",
]  # fmt: skip

MAX_DIGITS = 18
UNITS = {
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9,
}  # fmt: skip


# `(Worker_DP0_TP1 pid=7)` and `(EngineCore_DP1 pid=9)` of vLLM, `[10:02:12 DP0 TP1]` of SGLang.
_DP = re.compile(r"[_ ]DP(\d{1,4})(?!\d)", re.ASCII)
_TP = re.compile(r"(?:Worker(?:_[A-Z]{2,3}\d{1,4}){0,4}_| )TP(\d{1,3})(?!\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class LogFact:
    """One value that one line states. `value` is as printed; `unit` is what the engine means by it."""

    engine: EngineName
    what: What
    value: str
    unit: str
    line: int
    text: str

    @property
    def number(self) -> Decimal | None:
        """The value as a number; None where it is none, or has more digits than any log prints."""
        plain = self.value.replace(",", "")
        if sum(c.isdigit() for c in plain) > MAX_DIGITS:
            return None
        bare = plain.removeprefix("-")
        if not (bare.isascii() and bare.replace(".", "", 1).isdigit()):
            return None
        return Decimal(plain)

    @property
    def count(self) -> int | None:
        """The value as a whole number; None where it is none."""
        number = self.number
        return int(number) if number is not None and number == int(number) else None

    @property
    def replica(self) -> int | None:
        """The data-parallel rank that the line names."""
        found = _DP.search(self.text)
        return int(found[1]) if found else None

    @property
    def rank(self) -> int | None:
        """The tensor-parallel rank that the line names."""
        found = _TP.search(self.text)
        return int(found[1]) if found else None

    @property
    def step(self) -> Fraction:
        """The last printed digit: 1/100 for `3.81`, 1 for `1952`."""
        decimals = len(self.value.partition(".")[2])
        return Fraction(1, 10**decimals)


@dataclass(frozen=True, slots=True)
class Range:
    """All the exact values that would have been printed so, or that follow from what was printed."""

    low: Fraction
    high: Fraction

    def meets(self, other: Range) -> bool:
        """Whether some value lies in both."""
        return self.low <= other.high and other.low <= self.high

    @property
    def middle(self) -> Fraction:
        """The value in the middle, as an estimate."""
        return (self.low + self.high) / 2


def exactly(value: int | Fraction) -> Range:
    """A value without doubt."""
    return Range(Fraction(value), Fraction(value))


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure of the log against the formula.

    `computed` is in the log's unit, `difference` is logged minus computed in the log's unit and
    `difference_bytes` the same in bytes; all None where nothing could be computed. `hypotheses` are
    single changes of the assumptions that reproduce the logged figure: guesses, none of them checked.
    """

    engine: EngineName
    start_up: int
    line: int
    what: What
    logged: str
    unit: str
    verdict: Verdict
    computed: float | None = None
    difference_bytes: int | None = None
    difference_percent: float | None = None
    rule: str = ""
    reason: str = ""
    hypotheses: tuple[str, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One part of the logged bytes; the remainder may be negative."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class LogLedger:
    """What one logged size is made of; the rows sum to it, the unexplained remainder among them."""

    line: int
    logged_bytes: int
    half_step_bytes: int
    rows: tuple[LedgerRow, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """The answer of `kvgauge audit-log`."""

    file: str
    model: str
    start_ups: int
    findings: tuple[Finding, ...]
    ledgers: tuple[LogLedger, ...]
    assumptions: tuple[str, ...]
    notes: tuple[str, ...]

    def count(self, verdict: Verdict) -> int:
        """How many findings say so."""
        return sum(finding.verdict == verdict for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        counts = {
            "agree": self.count("agree"),
            "disagree": self.count("disagree"),
            "cannot_tell": self.count("cannot tell"),
        }
        return {**asdict(self), "counts": counts}
