"""What `audit-kernels` prints for people."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from kvgauge import display
from kvgauge.kernel_audit import Report
from kvgauge_kernels.audit.run import Result


def print_report(report: Report) -> None:
    """One row a target, then each fault by name, then the sum."""
    out = display.out()
    out.print(f"triton {report.version}", highlight=False)
    table = Table(
        "target", "kernels", "registers", "shared kB", "programs", "K, V bits", "spills", "faults",
        box=None,
    )  # fmt: skip
    for target in dict.fromkeys(result.target for result in report.results):
        table.add_row(*_row(target, [r for r in report.results if r.target == target]))
    out.print(table)
    for result in report.faulty:
        for fault in result.faults:
            out.print(
                f"[bold red]fault[/] {result.target} {escape(result.key)}: {escape(fault)}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    missing = report.without_limit
    if missing:
        out.print(
            f"{len(missing)} kernels have no limit for triton {report.version} in "
            f"{escape(str(report.limits))}: look at them, then `kvgauge audit-kernels --update`",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    out.print(f"{len(report.results)} kernels, {len(report.faulty)} with faults", highlight=False)


def _row(target: str, results: list[Result]) -> list[str]:
    known = [result.findings for result in results if result.findings is not None]
    widths = {
        bits for found in known for widths in found.code.load_bits.values() for bits in widths
    }
    return [
        target,
        str(len(results)),
        _range([found.code.registers for found in known]),
        _range([found.shared_bytes // 1000 for found in known]),
        _range([found.programs_per_sm for found in known]),
        ", ".join(map(str, sorted(widths))),
        str(sum(found.code.spills for found in known)),
        str(sum(bool(result.faults) for result in results)),
    ]


def _range(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}" if values else "-"
