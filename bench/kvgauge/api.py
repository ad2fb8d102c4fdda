"""The Python interface, with typed results.

`plan`, `fit`, `explain`, `audit_log`, `claims`; `load_run`, `compare`.

Each imports what it needs when it is called: `plan` needs no torch and no numpy.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from kvgauge.formula.fit import Fit, fit_of
from kvgauge.formula.plan import Plan, plan_of
from kvgauge.formula.setting import Setting, setting
from kvgauge.shapes.catalogue import NAMES, shape_named
from kvgauge.shapes.resolve import resolve
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import Trace

if TYPE_CHECKING:
    from kvgauge.audit.types import Audit
    from kvgauge.formula.claim import Claim
    from kvgauge.schema import Run, Verdict


class PlanOptions(TypedDict, total=False):
    """How a trace is served; what is left out has the default of `plan`."""

    prompt: int
    think: int
    answer: int
    batch: int
    kv_format: str
    page_size: int | None
    tp: int
    weight_format: str
    engine: str
    gpu: str | None
    utilization: float
    reserve_bytes: int


def plan(model: str | ModelShape, **options: Unpack[PlanOptions]) -> Plan:
    """What `batch` traces of `prompt + think + answer` tokens cost, from arithmetic alone.

    `model` is a catalogue name, a config.json, a folder that holds one, a .gguf file, or a shape.
    Defaults: no tokens, batch 1, `kv_format` fp16, `weight_format` bf16, no pages, `tp` 1, `engine` hf,
    no `gpu`, `utilization` 0.9, `reserve_bytes` 0. Raises UserError for anything that is wrong.
    """
    return plan_of(*_asked(model, options))


def fit(model: str | ModelShape, **options: Unpack[PlanOptions]) -> Fit:
    """The longest trace and the most requests that `gpu` holds; raises UserError without one."""
    shape, trace, chosen = _asked(model, options)
    return fit_of(shape, plan_of(shape, trace, chosen), chosen)


def explain(model: str | ModelShape, **options: Unpack[PlanOptions]) -> tuple[str, ...]:
    """A plan's arithmetic line by line, with its numbers, and the memory ledger."""
    from kvgauge.formula.explain import explain as lines

    shape, trace, chosen = _asked(model, options)
    return lines(shape, plan_of(shape, trace, chosen), chosen)


def _asked(model: str | ModelShape, options: PlanOptions) -> tuple[ModelShape, Trace, Setting]:
    shape = model if isinstance(model, ModelShape) else _shape(model)
    trace = Trace(options.get("prompt", 0), options.get("think", 0), options.get("answer", 0))
    chosen = setting(
        options.get("kv_format", "fp16"),
        options.get("weight_format", "bf16"),
        options.get("batch", 1),
        options.get("page_size"),
        options.get("tp", 1),
        options.get("engine", "hf"),
        options.get("gpu"),
        options.get("utilization", 0.9),
        options.get("reserve_bytes", 0),
    )
    return shape, trace, chosen


def _shape(model: str) -> ModelShape:
    # A file may change between two calls, a line of the catalogue may not.
    return _catalogued(model.lower()) if model.lower() in NAMES else resolve(model)


@lru_cache(maxsize=256)
def _catalogued(name: str) -> ModelShape:
    return shape_named(name)


def audit_log(
    file: str | Path,
    model: str | ModelShape,
    *,
    kv_format: str | None = None,
    tp: int | None = None,
    tokens: tuple[int, ...] = (),
) -> Audit:
    """An engine's start-up log, its KV lines recomputed from the model.

    `kv_format`, `tp` and `tokens` say what the log does not. Raises UserError where the file cannot be
    read or has no KV line.
    """
    from kvgauge.audit.context import Options
    from kvgauge.audit.judge import audit_log as audit

    shape = model if isinstance(model, ModelShape) else _shape(model)
    return audit(file, shape, Options(kv_format, tp, tokens))


def claims() -> tuple[Claim, ...]:
    """The textbook's figures against the formula, in the text's order."""
    from kvgauge.formula.claims import claims as table

    return table()


def load_run(folder: str | Path) -> Run:
    """Read a run folder; raises UserError, naming file, line and field, where it is not one."""
    from kvgauge.store.reader import load_run as load

    return load(folder)


def compare(run: Run, baseline: str | Path) -> tuple[Verdict, ...]:
    """One verdict a cell of `run` against a baseline file or folder of files.

    Raises NotComparable where there is no baseline.
    """
    from kvgauge.gate.baseline import load_baseline
    from kvgauge.gate.compare import compare as judge

    return judge(run, load_baseline(baseline))
