"""The public model configurations that tests read where they stand beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "shared" / "models"


def raw(name: str) -> dict[str, Any]:
    """The JSON object of one file; the test is skipped where the folder is not there."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no {path.name} beside the checkout")
    config: dict[str, Any] = json.loads(path.read_text())
    return config


def names() -> list[str]:
    """All configurations, by file name; empty where the folder is not there."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))
