"""What `audit-log` and `claims` print for people."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from kvgauge import display
from kvgauge.audit.types import Audit, Finding, LogLedger
from kvgauge.formula.claim import Claim, Figure
from kvgauge.units import binary_bytes, decimal_bytes, seconds

_STYLES = {"agree": "green", "disagree": "bold red", "cannot tell": "yellow"}


def print_audit(audit: Audit) -> None:
    """The findings, then the reasons, the ledgers and what was assumed."""
    out = display.out()
    out.print(escape(f"{audit.file} against {audit.model}"), highlight=False, soft_wrap=True)
    table = Table(
        "line", "engine", "figure", "logged", "computed", "difference", "verdict", box=None
    )
    for finding in audit.findings:
        verdict = f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]"
        table.add_row(
            str(finding.line), finding.engine, finding.what.replace("_", " "),
            escape(f"{finding.logged} {finding.unit}".strip()), _computed(finding),
            _difference(finding), verdict,
        )  # fmt: skip
    out.print(table)
    for finding in audit.findings:
        for text in _why(finding):
            out.print(f"  line {finding.line}: {escape(text)}", style="dim", soft_wrap=True)
    for rule in dict.fromkeys(finding.rule for finding in audit.findings if finding.rule):
        figures = dict.fromkeys(f.what.replace("_", " ") for f in audit.findings if f.rule == rule)
        out.print(f"  rule for {', '.join(figures)}: {rule}", style="dim", soft_wrap=True)
    for ledger in audit.ledgers:
        out.print(_ledger(ledger))
    for text in (*audit.assumptions, *audit.notes):
        out.print(f"  · {escape(text)}", style="dim", soft_wrap=True)
    out.print(
        f"{audit.count('agree')} agree, {audit.count('disagree')} disagree, "
        f"{audit.count('cannot tell')} cannot be told",
        highlight=False,
    )


def print_claims(claims: tuple[Claim, ...]) -> None:
    """Each claim: verdict, text, what was stated, what is computed, why."""
    out = display.out()
    for claim in claims:
        standing = "" if claim.standing == "arithmetic" else f" ({claim.standing})"
        out.print(f"[bold]{claim.verdict}[/]{standing}: {escape(claim.text)}", soft_wrap=True)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 2))
        for kind, figures in (("stated", claim.stated), ("computed", claim.computed)):
            for figure in figures:
                table.add_row(kind, escape(figure.name), _figure(figure))
        if table.row_count:
            out.print(table)
        out.print(f"  {escape(claim.sentence)}", style="dim", soft_wrap=True)


def _computed(finding: Finding) -> str:
    if finding.computed is None:
        return "-"
    decimals = len(finding.logged.partition(".")[2]) + 1 if "." in finding.logged else 0
    return f"{finding.computed:,.{decimals}f} {finding.unit}".strip()


def _difference(finding: Finding) -> str:
    if finding.verdict != "disagree":
        return ""
    size = f"{finding.difference_bytes:+,} bytes" if finding.difference_bytes is not None else ""
    share = f"{finding.difference_percent:+.2f}%" if finding.difference_percent is not None else ""
    return ", ".join(filter(None, (size, share)))


def _why(finding: Finding) -> list[str]:
    said = [finding.reason] if finding.reason else []
    if finding.verdict == "disagree":
        said += [f"hypothesis that reproduces the number: {text}" for text in finding.hypotheses]
        if not finding.hypotheses:
            said.append("no single known change of the assumptions reproduces the number")
    return said


def _ledger(ledger: LogLedger) -> Table:
    table = Table(
        box=None, show_header=False, title=f"ledger of line {ledger.line}", title_justify="left"
    )
    table.add_column()
    table.add_column(justify="right")
    for row in ledger.rows:
        table.add_row(escape(row.name), f"{row.bytes:,}")
    table.add_row("logged", f"{ledger.logged_bytes:,}", style="bold")
    return table


def _figure(figure: Figure) -> str:
    if figure.unit == "bytes":
        size = int(figure.value)
        return f"{size:,} bytes · {decimal_bytes(size)} · {binary_bytes(size)}"
    if figure.unit == "s":
        return seconds(figure.value)
    if figure.unit == "$":
        return f"${figure.value:,.2f}"
    return f"{figure.value:,.4g} {figure.unit}" if figure.value < 1000 else (
        f"{figure.value:,.0f} {figure.unit}"
    )  # fmt: skip
