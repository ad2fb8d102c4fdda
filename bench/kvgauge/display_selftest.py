"""What `selftest` prints for people."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from kvgauge import display
from kvgauge.selftest.command import Outcome


def print_outcome(outcome: Outcome) -> None:
    """Right and wrong by backend, then each backend's share of the measured bandwidth."""
    out = display.out()
    names = list(dict.fromkeys(check.backend for check in outcome.checks))
    table = Table("backend", "right", "wrong", "failed", "unsupported", "largest error", box=None)
    for name in names:
        own = [check for check in outcome.checks if check.backend == name]
        counts = [
            sum(c.state == s for c in own) for s in ("right", "wrong", "failed", "unsupported")
        ]
        errors = [check.error for check in own if check.error is not None]
        table.add_row(name, *map(str, counts), f"{max(errors):.1e}" if errors else "-")
    out.print(table)
    out.print("unsupported: a format or layout that the backend does not read, and says so")
    for name, reason in outcome.left_out.items():
        out.print(f"left out: {name}: {escape(reason)}", soft_wrap=True, highlight=False)
    for check in outcome.wrong:
        cache = f"{check.format}, {check.layout}, {check.k_dim}x{check.v_dim}"
        out.print(
            f"[bold red]{check.state}[/] {check.backend} ({cache}): {escape(check.reason or '')}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    rows = outcome.shares()
    timed = list(dict.fromkeys(name for _, row in rows for name in row))
    disturbed = outcome.disturbed()
    shares = Table("share of the read bandwidth measured beside it", *timed, box=None)
    for point, row in rows:
        cells = []
        for name in timed:
            value, mark = row.get(name), "~" if (point, name) in disturbed else ""
            cells.append("-" if value is None else f"{mark}{value:.2f}")
        shares.add_row(escape(point), *cells)
    out.print(shares)
    if disturbed:
        count = f"~ {len(disturbed)} of {len(outcome.timed())} times were disturbed"
        out.print(
            f"{count} (other work on this machine, drift): not to be compared", soft_wrap=True
        )
    status = outcome.run.manifest.status
    short = "" if status == "complete" else ": cells failed, or --budget-s was too short for all"
    out.print(f"the run: {status}{short}", highlight=False)
