"""Time the configurations that pass the audit on the GPU at hand, and keep those that beat the table's.

Nothing is tuned unless this is asked for. A candidate counts after the audit's rules found no fault in its
machine code for this GPU and its output agreed with the float64 oracle; then all take turns, so that a
clock that drifts favours none. Never run on a GPU by this project yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from kvgauge.devices import cuda_calls
from kvgauge.devices.types import Device
from kvgauge.errors import UserError
from kvgauge.kernel_audit import with_formula
from kvgauge.measure.validity import output_fault, relative_error
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.audit.cases import PACKED, SPLIT, Case
from kvgauge_kernels.audit.run import audit
from kvgauge_kernels.audit.targets import TARGETS, Target
from kvgauge_kernels.quantize import quantize, view_of
from kvgauge_kernels.stored import is_stored, stored_as
from kvgauge_kernels.triton import configs, tuned
from kvgauge_kernels.triton.launch import processor

FORMATS = ("bf16", "int8", "int4")
PAGE_SIZES = (0, 16)
# Sequences and tokens of each: one long trace, and many short ones; above a GPU's cache in 16 bits.
_SIZES = ((1, 32_768), (16, 4096))
_KV_HEADS, _GROUP, _ROUNDS = 8, 4, 15
# A gain below this is chance, and the table stays.
_GAIN = 0.97

Faults = Callable[[Case, Target], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one cache: seconds of each candidate over the table's, or why it was not timed."""

    cache: tuned.Cache
    times_the_table: dict[str, float]
    refused: dict[str, str]
    chosen: str


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all, and the file that keeps it."""

    path: Path
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"path": str(self.path), "rows": [asdict(row) for row in self.rows]}

    def lines(self) -> list[str]:
        """In words, a cache a line."""
        said = [
            f"{row.cache.format} {row.cache.k_dim}x{row.cache.v_dim} "
            f"{'pages' if row.cache.paged else 'contiguous'}: {row.chosen}, "
            f"{row.times_the_table.get(row.chosen, 1.0):.3f} of the table's time "
            f"({len(row.times_the_table)} timed, {len(row.refused)} refused)"
            for row in self.rows
        ]
        return [*said, f"wrote {self.path}; delete it to go back to the table"]


def audited_faults(case: Case, target: Target) -> Sequence[str]:
    """What the audit's rules find in the machine code of a case; it is compiled for that."""
    return with_formula(audit({}, [case], [target])[0]).faults


def target_of(device: torch.device) -> Target:
    """The audit's target that this GPU is; raises UserError where it audits none such."""
    facts = cuda_calls.properties(device)
    major, minor = facts.major, facts.minor
    found = TARGETS.get("gfx942" if torch.version.hip else f"sm_{major}{minor}")
    if found is None:
        known = ", ".join(TARGETS)
        raise UserError(f"tune-kernels: no audit for capability {major}.{minor}: one of {known}")
    return found


def tune(
    device: Device,
    formats: Sequence[str],
    head_dims: Sequence[int],
    seed: int = 0,
    *,
    faults: Faults = audited_faults,
    sizes: Sequence[tuple[int, int]] = _SIZES,
    progress: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Tune for every format, head dim and layout; raises UserError for what cannot be tuned."""
    backend = BACKENDS["triton"]
    reason = backend.available(device.torch_device)
    if reason is not None:
        raise UserError(f"tune-kernels: {reason}")
    for fmt in formats:
        if not is_stored(fmt) or stored_as(fmt).base not in backend.formats:
            raise UserError(
                f"tune-kernels: triton reads no {fmt}: {', '.join(sorted(backend.formats))}"
            )
    target = target_of(device.torch_device)
    rows, choices = [], []
    for fmt in formats:
        for dim in head_dims:
            for page_size in PAGE_SIZES:
                cases = [_cache(fmt, dim, page_size, size, device, seed) for size in sizes]
                why = backend.supports(cases[0][1], cases[0][0].dtype)
                if why is not None:
                    raise UserError(f"tune-kernels: {why}")
                row, choice = _tuned(cases, target, device, faults, progress)
                rows.append(row)
                choices += [choice] if choice else []
    gpu = str(cuda_calls.properties(device.torch_device).name)
    kept = {**tuned.load(gpu)[0], **{row.cache: None for row in rows}}
    kept |= {choice.cache: choice for choice in choices}
    try:
        path = tuned.save(gpu, tuple(choice for choice in kept.values() if choice))
    except OSError as error:
        raise UserError(f"tune-kernels: cannot write {error.filename}: {error.strerror}") from error
    return Report(path, tuple(rows))


def _tuned(
    cases: Sequence[tuple[torch.Tensor, KVView]],
    target: Target,
    device: Device,
    faults: Faults,
    progress: Callable[[str], None],
) -> tuple[Row, tuned.Choice | None]:
    """One cache in several sizes: the candidates that are sound, raced."""
    q, view = cases[-1]
    cache = tuned.Cache(view.format, view.k_dim, view.v_dim, view.block_table is not None)
    entry = configs.choose_for(
        processor(device.torch_device).room, cache.format, cache.k_dim, cache.v_dim,
        paged=cache.paged,
    )  # fmt: skip
    audited = Case(
        PACKED if stored_as(view.format).group else SPLIT,
        view.format, "fp16" if q.dtype == torch.float16 else "bf16",
        view.k_dim, view.v_dim, view.page_size or 0,
    )  # fmt: skip
    expected = oracle_decode(q, view)
    able: list[configs.Config] = []
    refused: dict[str, str] = {}
    for config in tuned.candidates(entry):
        progress(f"{audited.name} {tuned.named(config)}")
        found = "; ".join(faults(replace(audited, alternate=config), target))
        # Only what the audit passed is launched.
        found = found or _wrong(config, q, view, expected)
        if found:
            refused[tuned.named(config)] = found
        else:
            able.append(config)
    return _raced(cache, entry, able, refused, cases, device)


def _raced(
    cache: tuned.Cache,
    entry: configs.Config,
    able: Sequence[configs.Config],
    refused: dict[str, str],
    cases: Sequence[tuple[torch.Tensor, KVView]],
    device: Device,
) -> tuple[Row, tuned.Choice | None]:
    """The candidates in turns; the best, where it beats the table's entry by more than chance."""
    if entry not in able:
        return Row(cache, {}, refused, tuned.named(entry)), None
    ratios = {tuned.named(config): 1.0 for config in able}
    for q, view in cases:
        seconds: dict[str, list[float]] = {name: [] for name in ratios}
        for _ in range(_ROUNDS):
            for config in able:
                with tuned.on_trial(config):
                    seconds[tuned.named(config)].append(device.timed(partial(_step, q, view)))
        table_s = median(seconds[tuned.named(entry)])
        for name, times in seconds.items():
            ratios[name] *= (median(times) / table_s) ** (1 / len(cases))
    best = min(able, key=lambda config: ratios[tuned.named(config)])
    if ratios[tuned.named(best)] > _GAIN:
        return Row(cache, ratios, refused, tuned.named(entry)), None
    choice = tuned.Choice(cache, *tuned.shape_of(best), ratios[tuned.named(best)])
    return Row(cache, ratios, refused, tuned.named(best)), choice


def _step(q: torch.Tensor, view: KVView) -> torch.Tensor:
    return BACKENDS["triton"].decode(q, view)


def _wrong(config: configs.Config, q: torch.Tensor, view: KVView, expected: torch.Tensor) -> str:
    """What is wrong with a candidate's output, or why it does not run; empty where nothing is."""
    try:
        with tuned.on_trial(config):
            error = relative_error(_step(q, view), expected)
    except Exception as raised:  # a launch may ask for more than this GPU has
        return f"{type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
    fault = output_fault(error, q.dtype)
    return fault.reason if fault else ""


def _cache(
    fmt: str, dim: int, page_size: int, size: tuple[int, int], device: Device, seed: int
) -> tuple[torch.Tensor, KVView]:
    """A query and a full cache of random numbers of that many sequences and tokens; pages in order."""
    batch, tokens = size
    generator = torch.Generator().manual_seed(seed)
    per_page = page_size or tokens
    pages = tokens // per_page
    shape = (batch * pages, _KV_HEADS, per_page, dim)
    k, v = (
        quantize(torch.randn(shape, generator=generator).to(device.torch_device), fmt) for _ in "kv"
    )
    where: dict[str, Any] = {}
    if page_size:
        table = torch.arange(batch * pages, dtype=torch.int32).view(batch, pages)
        where = {
            "layout": "paged",
            "page_size": page_size,
            "block_table": table.to(device.torch_device),
        }
    q = torch.randn(batch, _KV_HEADS * _GROUP, dim, generator=generator)
    dtype = torch.float16 if fmt == "fp16" else torch.bfloat16
    return q.to(dtype).to(device.torch_device), view_of(k, v, fmt, **where)
