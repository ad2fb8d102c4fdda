"""Which cells a run has: what the user asked for, or else the profile's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from kvgauge.errors import UserError, did_you_mean, short
from kvgauge.formats import kv_format
from kvgauge.schema import CacheState, Launch
from kvgauge.shapes.catalogue import NAMES
from kvgauge.shapes.resolve import resolve
from kvgauge.shapes.types import ModelShape
from kvgauge.suites.profiles import Profile, profile
from kvgauge.suites.table import suites
from kvgauge.suites.types import CellPlan, Request, Suite
from kvgauge.traces.types import Trace
from kvgauge_kernels import BACKENDS
from kvgauge_kernels.stored import STORED_FORMATS, is_stored

MAX_BATCH = 1_000_000
MAX_PAGE_SIZE = 65_536


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for; an empty tuple means the profile's own."""

    profile: str = "smoke"
    suites: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    kv_formats: tuple[str, ...] = ()
    think_tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    cache_states: tuple[CacheState, ...] = ()
    launches: tuple[Launch, ...] = ()
    page_sizes: tuple[int, ...] = ()
    budget_s: float | None = None
    seed: int = 0
    try_oversize: bool = False

    def __post_init__(self) -> None:
        for option, given, known in (
            ("--cache-state", self.cache_states, get_args(CacheState)),
            ("--launch", self.launches, get_args(Launch)),
        ):
            for value in given:
                if value not in known:
                    raise UserError(f"{option} {short(value)}: one of {', '.join(known)}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be between 0 and 2^63 - 1")
        if self.budget_s is not None and not 0 <= self.budget_s < float("inf"):
            raise UserError(f"--budget-s {self.budget_s}: must be a number of seconds, 0 or more")

    @property
    def narrowed(self) -> bool:
        """Whether the profile's own choice was changed by hand."""
        chosen = (self.suites, self.models, self.backends, self.kv_formats)
        return any(
            (
                *chosen,
                self.think_tokens,
                self.batches,
                self.cache_states,
                self.launches,
                self.page_sizes,
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Job:
    """A cell with the suite that measures it and the guessed seconds."""

    suite: Suite
    plan: CellPlan
    estimate_s: float


@dataclass(frozen=True, slots=True)
class Jobs:
    """All cells of a run; what this machine leaves out of it, and backends asked for by name whose cells
    will say `unsupported`, both with the reasons.
    """

    jobs: tuple[Job, ...]
    left_out: dict[str, str]
    cannot_run: dict[str, str] = field(default_factory=dict)


def list_jobs(options: Options, device_kind: str) -> Jobs:
    """The cells of a run in order; raises UserError for unknown names or an empty choice."""
    _check_one_name_each(options)
    chosen, table = profile(options.profile), suites()
    for name in options.suites:
        if name not in table:
            raise UserError(f"unknown suite {name!r}: one of {', '.join(table)}")
    _check_backend_names(options.backends, table.values())
    active = [s for s in table.values() if not options.suites or s.name in options.suites]
    left_out: dict[str, str] = {}
    cannot_run: dict[str, str] = {}
    jobs: list[Job] = []
    models = tuple(resolve(name) for name in (options.models or chosen.models))
    for suite in active:
        # What was asked for by name is not left out: its cells say why where they do not run.
        for name, why in suite.missing(device_kind, options.backends).items():
            (cannot_run if name in options.backends else left_out)[name] = why
        request = _request(suite.name, options, chosen, models, device_kind)
        plans = suite.plans(request)
        if not plans:
            why = f"no cell of it fits this choice: it takes {suite.takes()}"
            left_out.setdefault(f"suite {suite.name}", why)
        jobs += [
            Job(suite, plan, suite.estimate_s(plan, chosen.criterion, device_kind))
            for plan in plans
        ]
    # A model or a depth named twice is one cell.
    jobs = list({job.plan.cell.cell_id: job for job in jobs}.values())
    _check_backends(options.backends, jobs)
    left_out |= _unread(options, jobs)
    if options.page_sizes:
        left_out |= _without_pages(jobs)
        if not options.kv_formats:
            left_out |= _too_short(chosen, options.page_sizes)
    if not jobs:
        said = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"no cell matches this choice{f' ({said})' if said else ''}")
    return Jobs(tuple(jobs), left_out, cannot_run)


def _check_one_name_each(options: Options) -> None:
    """A comma joins no names here, as it does where `plan --compare` takes several."""
    for option, given in (
        ("--suite", options.suites), ("--model", options.models), ("--backend", options.backends),
        ("--kv-format", options.kv_formats),
    ):  # fmt: skip
        for said in given:
            names = said.split(",")
            # A path to a model may have commas; names of the catalogue have none.
            if len(names) > 1 and (option != "--model" or {*map(str.lower, names)} <= {*NAMES}):
                each = " ".join(f"{option} {name}" for name in names if name)
                raise UserError(
                    f"{option} {short(said)}: the option is given once for each: {short(each)}"
                )


def _request(
    suite: str, options: Options, chosen: Profile, models: tuple[ModelShape, ...], device_kind: str
) -> Request:
    for name in options.kv_formats:
        if not is_stored(kv_format(name).name):
            raise UserError(
                f"KV format {name} is planned but not measured: one of {', '.join(STORED_FORMATS)}"
            )
    for batch in options.batches:
        if not 1 <= batch <= MAX_BATCH:
            raise UserError(f"--batch {batch}: must be between 1 and {MAX_BATCH}")
    for size in options.page_sizes:
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise UserError(f"--page-size {size}: must be between 1 and {MAX_PAGE_SIZE} tokens")
    for tokens in options.think_tokens:
        if tokens < 1:
            raise UserError(f"--think {tokens}: must be at least 1")
    return Request(
        device_kind=device_kind,
        models=models,
        traces=tuple(Trace(think_tokens=n) for n in options.think_tokens)
        or chosen.traces.get(suite, chosen.traces["decode"]),
        kv_formats=tuple(
            kv_format(name).name
            for name in options.kv_formats or chosen.kv_formats
            if options.kv_formats or name not in _too_short(chosen, options.page_sizes)
        ),
        backends=options.backends,
        batches=options.batches or chosen.batches,
        layers_timed=chosen.layers_timed,
        explicit_formats=bool(options.kv_formats),
        cache_states=options.cache_states or ("cold",),
        page_sizes=options.page_sizes,
        launches=options.launches or _launches(chosen, device_kind),
    )


def _check_backend_names(backends: tuple[str, ...], table: Iterable[Suite]) -> None:
    known = [name for suite in table for name in suite.backends()]
    for name in backends:
        # The oracle is in no suite's list, and may be asked for by name.
        if name not in known and name not in BACKENDS:
            hint = did_you_mean(name, known)
            raise UserError(
                f"unknown backend '{short(name)}': {hint or 'one of'} "
                + (f"({', '.join(known)})" if hint else ", ".join(known))
            )


def _unread(options: Options, jobs: Sequence[Job]) -> dict[str, str]:
    """Of the backends and the formats that were named, the pairs without a cell."""
    used = {(job.plan.cell.backend, job.plan.cell.kv_format) for job in jobs}
    reads = {name: f"it reads {', '.join(sorted(b.formats))} alone" for name, b in BACKENDS.items()}
    return {
        f"{backend} of {fmt}": reads.get(backend, "its suite does not compute in this format")
        for backend in options.backends
        for fmt in (kv_format(name).name for name in options.kv_formats)
        if (backend, fmt) not in used
    }


def _without_pages(jobs: Sequence[Job]) -> dict[str, str]:
    """The backends of these cells that read contiguous caches alone, while pages were asked for."""
    used = dict.fromkeys(job.plan.cell.backend for job in jobs if job.plan.cell.backend)
    reads = {name: BACKENDS[name].layouts for name in used if name in BACKENDS}
    return {
        f"{name} in pages": "reads contiguous caches alone"
        for name, layouts in reads.items()
        if "paged" not in layouts
    }


def _too_short(chosen: Profile, page_sizes: tuple[int, ...]) -> dict[str, str]:
    """Of the profile's formats those that share scales of K among more tokens than pages hold."""
    groups = {name: kv_format(name).k_group_tokens for name in chosen.kv_formats}
    return {
        name: f"pages must hold whole groups of {group} tokens"
        for name, group in groups.items()
        if group is not None and any(size % group for size in page_sizes)
    }


def _check_backends(backends: tuple[str, ...], jobs: Sequence[Job]) -> None:
    used = {job.plan.cell.backend for job in jobs}
    for name in backends:
        if name not in used:
            known = sorted(backend for backend in used if backend)
            raise UserError(
                f"backend {name!r} reads none of the chosen formats and suites"
                + (f"; chosen cells use {', '.join(known)}" if known else "")
            )


def _launches(chosen: Profile, device_kind: str) -> tuple[Launch, ...]:
    """The profile's own; a CPU has no graphs."""
    return chosen.launches if device_kind == "cuda" else ("stream",)
