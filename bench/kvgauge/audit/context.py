"""What a start-up says around its figures, completed by the caller's options and, last, by assumption."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from kvgauge.audit.read import StartUp
from kvgauge.audit.sizes import Case
from kvgauge.audit.types import UNITS, LogFact, Range, What
from kvgauge.errors import UserError
from kvgauge.formats import FORMATS, KVFormat, kv_format
from kvgauge.shapes.types import ModelShape

MAX_COUNT = 10**12
MAX_RANKS = 4096
MAX_PLACED = 512
MAX_BESIDE = 32
Place = tuple[int | None, int | None]
# What engines call the formats of `kvgauge.formats`; `auto` and `model` mean the model's own dtype.
_FORMAT_NAMES = {
    "f32": "fp32", "float32": "fp32", "float": "fp32", "f16": "fp16", "float16": "fp16",
    "half": "fp16", "bfloat16": "bf16", "fp8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3",
    "float8_e4m3fnuz": "fp8_e4m3", "float8_e5m2": "fp8_e5m2",
}  # fmt: skip


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
    known_counts: dict[What, list[int]]
    places: dict[What, list[tuple[LogFact, Place]]]
    """The facts of each kind, with the ranks that their lines name."""
    placed: dict[tuple[What, Place], list[LogFact]] = field(default_factory=dict)
    """Those of them that may belong to a rank, as far as asked for."""

    def counts(self, what: What) -> list[int]:
        """All usable whole numbers that the start-up states of that kind, in order."""
        return self.known_counts.get(what, [])

    def last(self, what: What) -> int | None:
        """The last of them."""
        return _last(self.counts(what))

    def beside(self, fact: LogFact, what: What) -> list[LogFact]:
        """The facts of that kind that may belong to `fact`, the likeliest first.

        Where both lines name a rank, it must be the same. Else any may: ranks print in any order, and
        the nth of one kind goes with the nth of the other.
        """
        place = (fact.replica, fact.rank)
        mine = self._placed(fact.what, place)
        found = self._placed(what, place)
        nth = next((n for n, each in enumerate(mine) if each is fact), 0)
        paired = found[nth : nth + 1] if len(found) == len(mine) else found[-1:]
        return (paired + [each for each in found if each not in paired])[:MAX_BESIDE]

    def _placed(self, what: What, place: Place) -> list[LogFact]:
        known = self.placed.get((what, place))
        if known is None:
            every = self.places.get(what, [])[-MAX_PLACED:]
            known = self.placed[what, place] = [f for f, its in every if _together(its, place)]
        return known

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
    places: dict[What, list[tuple[LogFact, Place]]] = {}
    for fact in start_up.facts:
        if (count := usable_count(fact)) is not None:
            counts.setdefault(fact.what, []).append(count)
        places.setdefault(fact.what, []).append((fact, (fact.replica, fact.rank)))
    pp = (counts.get("pp") or [1])[-1] or 1
    return Context(start_up, shape, options, case, pp, unknown, tuple(said), counts, places)


def _together(one: Place, other: Place) -> bool:
    (replica, rank), (its_replica, its_rank) = one, other
    return (replica is None or its_replica is None or replica == its_replica) and (
        rank is None or its_rank is None or rank == its_rank
    )


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
        return _attention_ranks(start_up, stated, said)
    where = f"start-up {start_up.number} ({start_up.engine})"
    ranks = 1 + max((fact.rank or 0 for fact in start_up.facts), default=0)
    if ranks > 1:
        said.append(f"{where}: tensor parallel size {ranks}, as lines of so many ranks are here")
        return ranks
    said.append(f"{where}: tensor parallel size 1, as the log states none (--tp)")
    return 1


def _attention_ranks(start_up: StartUp, tp: int, said: list[str]) -> int:
    """SGLang's DP attention cuts the ranks into groups, each of which holds caches of its own."""
    dp = _last_count(start_up, "dp") or 1
    if dp == 1 or tp % dp or not any(fact.what == "dp_attention" for fact in start_up.facts):
        return tp
    said.append(
        f"start-up {start_up.number} ({start_up.engine}): attention on {tp // dp} of the {tp} ranks, as "
        f"the log states enable_dp_attention with dp_size={dp}"
    )
    return tp // dp


def _last_count(start_up: StartUp, what: What) -> int | None:
    return _last(
        count
        for fact in start_up.facts
        if fact.what == what and (count := usable_count(fact)) is not None
    )


def _last(counts: Iterable[int]) -> int | None:
    found = list(counts)
    return found[-1] if found else None
