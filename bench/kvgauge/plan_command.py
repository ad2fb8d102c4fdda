"""`kvgauge plan`: one plan, or a table of them, for people or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from kvgauge import api
from kvgauge.api import PlanOptions
from kvgauge.errors import UserError
from kvgauge.traces.axis import Axis, parse_axis
from kvgauge.variants import parse_variants

PrintJson = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Views:
    """What is asked about the plan: its arithmetic, its inverse, or a table of its kind."""

    explain: bool = False
    fit: bool = False
    sweep: str | None = None
    compare: tuple[str, ...] = ()


def only_sweep(texts: Sequence[str]) -> str | None:
    """The axis of `--sweep`, if any; raises UserError where there are several."""
    if len(texts) > 1:
        raise UserError(f"--sweep given {len(texts)} times: one --sweep at a time")
    return texts[0] if texts else None


def run(model: str, options: PlanOptions, views: Views, print_json: PrintJson | None) -> None:
    """Print on stdout; raises UserError for anything that is wrong with the words."""
    tables = [
        name for name, given in (("--sweep", views.sweep), ("--compare", views.compare)) if given
    ]
    if tables and (len(tables) > 1 or views.explain or views.fit):
        raise UserError(
            f"{tables[0]} makes a table of its own: leave out --explain, --fit and others"
        )
    if views.sweep:
        _sweep(model, options, parse_axis(views.sweep), print_json)
    elif views.compare:
        _compare(model, options, views.compare, print_json)
    else:
        _one(model, options, views, print_json)


def _one(model: str, options: PlanOptions, views: Views, print_json: PrintJson | None) -> None:
    result = api.plan(model, **options)
    fit = api.fit(model, **options) if views.fit else None
    lines = api.explain(model, **options) if views.explain else None
    if print_json is not None:
        document = result.to_json()
        if fit is not None:
            document["fit"] = fit.to_json()
        if lines is not None:
            document["explain"] = list(lines)
        print_json(document)
        return
    from kvgauge import display_plan

    display_plan.print_plan(result, fit, lines)


def _sweep(model: str, options: PlanOptions, axis: Axis, print_json: PrintJson | None) -> None:
    plans = [
        api.plan(model, **cast(PlanOptions, {**options, axis.name: value})) for value in axis.values
    ]
    if print_json is not None:
        print_json({"sweep": asdict(axis), "plans": [plan.to_json() for plan in plans]})
        return
    from kvgauge import display_plan

    display_plan.print_sweep(axis, plans)


def _compare(
    model: str, options: PlanOptions, texts: tuple[str, ...], print_json: PrintJson | None
) -> None:
    labels, plans = ["as asked"], [api.plan(model, **options)]
    for variant in parse_variants(texts):
        changed = {"model": model, **options, **variant.changes}
        name = changed.pop("model")
        labels.append(variant.label)
        plans.append(api.plan(cast(str, name), **cast(PlanOptions, changed)))
    if print_json is not None:
        print_json({"labels": labels, "plans": [plan.to_json() for plan in plans]})
        return
    from kvgauge import display_plan

    display_plan.print_comparison(labels, plans)
