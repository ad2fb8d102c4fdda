"""What a start-up says around its figures, completed by the caller's options and, last, by assumption."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from kvgauge.audit.read import StartUp
from kvgauge.audit.sizes import Case
from kvgauge.audit.types import UNITS, LogFact, Range, What
from kvgauge.errors import UserError
from kvgauge.formats import FORMATS, KVFormat, kv_format
from kvgauge.shapes.types import ModelShape

MAX_COUNT = 10**12
MAX_RANKS = 4096
# What engines call the formats of `kvgauge.formats`; `auto` and `model` mean the model's own dtype.
_FORMAT_NAMES = {
    "f32": "fp32", "float32": "fp32", "float": "fp32", "f16": "fp16", "float16": "fp16",
    "half": "fp16", "bfloat16": "bf16", "fp8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3",
    "float8_e4m3fnuz": "fp8_e4m3", "float8_e5m2": "fp8_e5m2",
}  # fmt: skip

# `Worker_TP3` (vLLM) and ` TP3]` (SGLang) stand before the lines of a rank.
_RANK = re.compile(r"(?:Worker_| )TP(\d{1,3})(?!\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller says; it goes before what a distant line says, not before the figure's own."""

    kv_format: str | None = None
    tp: int | None = None
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kv_format is not None:
            kv_format(self.kv_format)
        if self.tp is not None and not 1 <= self.tp <= MAX_RANKS:
            raise UserError(f"--tp {self.tp}: must be between 1 and {MAX_RANKS}")
        for tokens in self.tokens:
            if not 1 <= tokens <= MAX_COUNT:
                raise UserError(f"--tokens {tokens}: must be between 1 and {MAX_COUNT}")


@dataclass(frozen=True, slots=True)
class Context:
    """One start-up with its settings. `unknown_format` is a format name that the log alone knows."""

    start_up: StartUp
    shape: ModelShape
    options: Options
    case: Case
    pp: int
    unknown_format: str | None
    assumptions: tuple[str, ...]
    available: Range | None
    """Bytes for the cache on the rank that has least, which decides for all."""
    known_counts: dict[What, list[int]]

    def counts(self, what: What) -> list[int]:
        """All usable whole numbers that the start-up states of that kind, in order."""
        return self.known_counts.get(what, [])

    def last(self, what: What) -> int | None:
        """The last of them."""
        return _last(self.counts(what))

    @property
    def block_tokens(self) -> int | None:
        """Tokens a block (a page)."""
        return self.last("block_tokens") or None


def make_context(start_up: StartUp, shape: ModelShape, options: Options) -> Context:
    """The settings of one start-up, each from the best source there is."""
    said: list[str] = []
    fmt, unknown = _format(start_up, options, said)
    tp = 1 if start_up.engine == "llama.cpp" else _tp(start_up, options, said)
    case = Case(shape, start_up.engine, fmt, fmt, tp)
    counts: dict[What, list[int]] = {}
    for fact in start_up.facts:
        if (count := usable_count(fact)) is not None:
            counts.setdefault(fact.what, []).append(count)
    pp = (counts.get("pp") or [1])[-1] or 1
    return Context(
        start_up, shape, options, case, pp, unknown, tuple(said), _available(start_up), counts
    )


def _available(start_up: StartUp) -> Range | None:
    ranges = [
        found
        for fact in start_up.facts
        if fact.what == "available_bytes" and (found := printed_range(fact)) is not None
    ]
    return min(ranges, key=lambda found: found.low, default=None)


def usable_count(fact: LogFact) -> int | None:
    """A whole number from 0 to 10^12; None for anything else."""
    count = fact.count
    return count if count is not None and 0 <= count <= MAX_COUNT else None


def printed_range(fact: LogFact) -> Range | None:
    """The values, in bytes where the unit is one of bytes, that are printed as this fact is."""
    number = fact.number
    if number is None:
        return None
    scale, half = UNITS.get(fact.unit, 1), fact.step / 2
    if not fact.unit and "." not in fact.value:
        half = Fraction(0)  # a count of things is exact
    return Range((Fraction(number) - half) * scale, (Fraction(number) + half) * scale)


def format_named(name: str) -> KVFormat | None:
    """The format that an engine calls so; None where it is not known."""
    plain = name.removeprefix("torch.").lower()
    known = _FORMAT_NAMES.get(plain, plain)
    return FORMATS.get(known)


def _format(start_up: StartUp, options: Options, said: list[str]) -> tuple[KVFormat, str | None]:
    if options.kv_format is not None:
        return kv_format(options.kv_format), None
    where = f"start-up {start_up.number} ({start_up.engine})"
    for what in ("kv_format", "model_dtype"):
        names = [
            f.value for f in start_up.facts if f.what == what and f.value not in ("auto", "None")
        ]
        if not names:
            continue
        found = format_named(names[-1])
        if found is None:
            return kv_format("bf16"), names[-1]
        if what == "model_dtype":
            said.append(f"{where}: KV format {found.name}, the model's dtype")
        return found, None
    # llama.cpp prints the format with the figure, and has fp16 by default.
    assumed = kv_format("fp16" if start_up.engine == "llama.cpp" else "bf16")
    if start_up.engine != "llama.cpp" or not any(f.what == "k_format" for f in start_up.facts):
        said.append(f"{where}: KV format {assumed.name}, as the log states none (--kv-format)")
    return assumed, None


def _tp(start_up: StartUp, options: Options, said: list[str]) -> int:
    if options.tp is not None:
        return options.tp
    stated = _last_count(start_up, "tp")
    if stated and stated <= MAX_RANKS:
        return stated
    where = f"start-up {start_up.number} ({start_up.engine})"
    found = (_RANK.search(fact.text) for fact in start_up.facts)
    ranks = 1 + max((int(match[1]) for match in found if match), default=0)
    if ranks > 1:
        said.append(f"{where}: tensor parallel size {ranks}, as lines of so many ranks are here")
        return ranks
    said.append(f"{where}: tensor parallel size 1, as the log states none (--tp)")
    return 1


def _last_count(start_up: StartUp, what: What) -> int | None:
    return _last(
        count
        for fact in start_up.facts
        if fact.what == what and (count := usable_count(fact)) is not None
    )


def _last(counts: Iterable[int]) -> int | None:
    found = list(counts)
    return found[-1] if found else None
