"""MODEL of the command line -> ModelShape: a catalogue name, a config.json, its folder, a .gguf."""

from __future__ import annotations

from pathlib import Path

from kvgauge.errors import UserError, short
from kvgauge.shapes.catalogue import NAMES, shape_named
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.types import ModelShape


def resolve(model: str) -> ModelShape:
    """The shape that `model` names; a catalogue name goes before a file of that name."""
    if model.lower() in NAMES:
        return shape_named(model.lower())
    path = Path(model)
    if not model or not _exists(path):
        raise UserError(_unknown(model))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise UserError(f"{short(model)}: a folder without a config.json")
        return read_config(path / "config.json")
    if path.suffix.lower() == ".gguf":
        from kvgauge.shapes.gguf import read_gguf

        return read_gguf(path)
    return read_config(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a NUL byte
        return False


def _unknown(model: str) -> str:
    import difflib  # only where a name is wrong

    # A hub's name, `meta-llama/Llama-3.1-8B`, is close to ours by its last part.
    last = model[-80:].rsplit("/", 1)[-1].lower()
    close = difflib.get_close_matches(last, NAMES, n=3, cutoff=0.5)
    if "/" in model or model.endswith((".json", ".gguf")):
        hint = f"; the catalogue has {' and '.join(close)}" if close else ""
        return f"{short(model)}: no such file or folder{hint}"
    hint = f"did you mean {' or '.join(close)}?" if close else "`kvgauge models` lists the names."
    return (
        f"unknown model '{short(model)}': {hint} "
        "A path to a config.json, its folder or a .gguf works too"
    )
