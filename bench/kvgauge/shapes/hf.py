"""`config.json` -> ModelShape: the file is checked, `model_type` picks the reader of its layout.

A new layout is one file with a reader and one line in `READERS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from kvgauge.errors import UserError, short
from kvgauge.shapes.families import FAMILIES, read_plain
from kvgauge.shapes.fields import Fields, parse_fields
from kvgauge.shapes.files import read_bounded
from kvgauge.shapes.types import ModelShape

# Real ones are 1 to 60 kB.
MAX_CONFIG_BYTES = 1 << 20


class Facts(Protocol):
    """What a layout's reader returns."""

    def shape(self, name: str, source: str) -> ModelShape:
        """The model as its cache and its weights see it."""


READERS: dict[str, Callable[[Fields], Facts]] = {
    **dict.fromkeys(FAMILIES, read_plain),
}


def read_config(path: str | os.PathLike[str]) -> ModelShape:
    """The shape of the model that a config.json describes; UserError for anything else.

    UnsupportedLayout where it is a model configuration whose cache layout is not known here.
    """
    where = short(os.fspath(path), 200)
    fields = parse_fields(read_bounded(path, MAX_CONFIG_BYTES), where)
    model_type = fields.text("model_type")
    reader = READERS.get(model_type)
    if reader is None:
        raise fields.unsupported("model_type", f"known: {', '.join(sorted(READERS))}")
    facts = reader(fields)
    try:
        return facts.shape(_model_name(Path(path)), where)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _model_name(path: Path) -> str:
    # A config.json is named by its folder, a copy such as `llama.json` by itself.
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return short(name) or "model"
