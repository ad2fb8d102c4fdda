"""What `doctor` prints for people: the verdict, what to mend, then everything by subject."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvgauge import display
from kvgauge.doctor.types import Check, Diagnosis, Runnable, Section, State, listed

_STYLES: dict[State, str] = {
    "ok": "green", "warn": "yellow", "unavailable": "dim", "fail": "bold red",
}  # fmt: skip
_MARKS: dict[State, str] = {"ok": "ok", "warn": "warn", "unavailable": "-", "fail": "FAIL"}
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
_MAX_CHARS = 400
_CARD = re.compile(r"GPU \d+")
_NAME_WIDTH = 20


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The verdict and what to mend first: the rest is there to be looked up."""
    out = display.out()
    out.print(Text(printable(diagnosis.verdict), "bold"))
    sections = merged(diagnosis.sections)
    _print_mending(out, sections)
    _print_runnable(out, diagnosis.runnable)
    for section in sections:
        out.print(Text(section.title, "bold"))
        table = _table(4)
        for check in section.checks:
            table.add_row(
                Text(_MARKS[check.state], _STYLES[check.state]), _text(check.name), _found(check)
            )
        out.print(table)


def printable(text: str) -> str:
    """One line that changes nothing on a terminal, of bounded length."""
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_MAX_CHARS]
    )
    return line if len(text) <= _MAX_CHARS else f"{line}..."


def failure_line(check: Check) -> str:
    """A failed check in one line, for stderr."""
    parts = (f"{check.name}: {check.found}", check.means, check.right)
    return printable("; ".join(filter(None, parts)))


def merged(sections: Iterable[Section]) -> list[Section]:
    """The sections with those of several GPUs in one: what is the same on all is said once."""
    cards = [section for section in sections if _CARD.fullmatch(section.title)]
    if len(cards) < 2:
        return list(sections)
    kept = [section for section in sections if section not in cards]
    place = next(n for n, section in enumerate(kept) if section.title == "GPU") + 1
    return [*kept[:place], _one_of_many(cards), *kept[place:]]


def _one_of_many(cards: Sequence[Section]) -> Section:
    groups: dict[tuple[str, State, str], list[tuple[str, Check]]] = {}
    for card in cards:
        number = card.title.removeprefix("GPU ")
        for check in card.checks:
            groups.setdefault((check.name, check.state, check.found), []).append((number, check))
    names = [check.name for check in cards[0].checks]
    rows = [
        _for_all(members, _which(members, len(cards)))
        for members in sorted(groups.values(), key=lambda group: names.index(group[0][1].name))
    ]
    return Section("Each GPU", tuple(rows))


def _for_all(members: Sequence[tuple[str, Check]], which: str) -> Check:
    check = members[0][1]
    right = check.right
    if len(members) > 1 and " -i " in right:  # a command to one GPU
        right += f"; likewise for GPU {listed([number for number, _ in members[1:]])}"
    return replace(check, found=f"{which}: {check.found}", right=right)


def _which(members: Sequence[tuple[str, Check]], count: int) -> str:
    return f"all {count}" if len(members) == count else listed([number for number, _ in members])


def _print_mending(out: Console, sections: Sequence[Section]) -> None:
    titles: tuple[tuple[State, str], ...] = (
        ("fail", "To be mended"), ("warn", "Disturbs measurements or may surprise"),
    )  # fmt: skip
    for state, title in titles:
        checks = [check for section in sections for check in section.checks if check.state == state]
        if not checks:
            continue
        out.print(Text(title, _STYLES[state]))
        table = _table(_NAME_WIDTH)
        for check in checks:
            told = _text(": ".join(filter(None, (check.found, check.means))))
            if check.right:
                told.append(f"\n→ {printable(check.right)}", "cyan")
            table.add_row(_text(check.name), told)
        out.print(table)


def _print_runnable(out: Console, runnable: Sequence[Runnable]) -> None:
    if not runnable:
        return
    out.print(Text("What can be run", "bold"))
    table = _table(4)
    for device, called in _DEVICES.items():
        entries = [entry for entry in runnable if entry.device == device]
        reasons = {entry.reason for entry in entries}
        if len(reasons) == 1 and None not in reasons:
            table.add_row(called, "nothing", _text(str(entries[0].reason), "dim"))
            continue
        for kind in ("suite", "backend"):
            names = [e.name for e in entries if e.kind == kind and e.reason is None]
            table.add_row(called, f"{kind}s", _text(listed(names), "green"))
        for entry in entries:
            if entry.reason is not None:
                table.add_row(called, _text(f"not {entry.name}"), _text(entry.reason, "dim"))
    out.print(table)


def _found(check: Check) -> Text:
    if check.state != "unavailable":
        return _text(check.found)
    text = _text(": ".join(filter(None, (check.found, check.means))), "dim")
    return text.append(f"; {printable(check.right)}") if check.right else text


def _text(text: str, style: str = "") -> Text:
    return Text(printable(text), style)


def _table(first_width: int) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 1))
    table.add_column(min_width=first_width, no_wrap=True)
    if first_width < _NAME_WIDTH:
        table.add_column(min_width=_NAME_WIDTH, no_wrap=True)
    return table
