"""How every command reads a run folder: what is wrong with it but bearable is said on stderr."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge import api, display

if TYPE_CHECKING:
    from kvgauge.schema import Run


def load_run(folder: Path) -> Run:
    """The run, of a folder or of a self-test's bundle; a torn last line is said, and checks that failed.

    Raises UserError.
    """
    if folder.is_file():
        from kvgauge.selftest.bundle import as_run_folder

        with as_run_folder(folder) as (unpacked, found):
            run = api.load_run(unpacked)
        if found.wrong:
            display.note(f"{folder}: {found.said(3)}")
        return replace(run, remarks=found.remarks())
    run = api.load_run(folder)
    if run.torn_lines:
        display.note(
            f"{folder}: the last line of records.jsonl is torn and not counted; "
            f"`kvgauge run --resume --run-dir {folder}` measures its cell again"
        )
    return run
