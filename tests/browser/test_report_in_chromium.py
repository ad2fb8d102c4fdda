"""The report as a browser sees it: figures and tables are there, nothing is logged or loaded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runs_for_tests import hostile_run, troubled_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--enable-logging=stderr", "--hide-scrollbars",
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chromium-browser on this machine"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for package in ("jinja2", "matplotlib", "pandas"):
        pytest.importorskip(package)
    from kvgauge_reports import write_html

    folder = tmp_path_factory.mktemp("report")
    return {
        "troubled": write_html([troubled_run()], folder / "troubled.html"),
        "hostile": write_html([hostile_run()], folder / "hostile.html"),
    }


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """stdout and the browser's log."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode(), done.stderr.decode(errors="replace")


@pytest.mark.parametrize("name", ["troubled", "hostile"])
def test_dom_has_figures_and_tables_and_no_console_errors(
    name: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    dom, log = browse(pages[name], tmp_path, "--dump-dom")
    assert dom.count("<figure>") == 4
    assert dom.count("<table") == 6
    assert dom.count("<h1>") == 1
    assert "CONSOLE" not in log
    assert "<script" not in dom
    assert "<img src=https" not in dom


@pytest.mark.parametrize("width", [500, 1400])
def test_screenshot_has_colour_on_it(width: int, pages: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    _, log = browse(
        pages["troubled"], tmp_path / "profile", f"--window-size={width},1800",
        f"--screenshot={picture}",
    )  # fmt: skip
    assert "CONSOLE" not in log
    # An empty page compresses to a few kB.
    assert picture.stat().st_size > 60_000
