"""`config.json` -> ModelShape: the file is checked, `model_type` picks the reader of its layout.

A new layout is one file with a reader and one line in its table of model types.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from kvgauge.errors import UserError, short
from kvgauge.shapes import (
    chunked,
    conv,
    families,
    guard,
    lightning,
    linear,
    mla,
    nemotron_h,
    nested,
    older,
    perlayer,
    ssm,
    step,
    stored,
)
from kvgauge.shapes.fields import Fields, parse_fields
from kvgauge.shapes.files import read_bounded
from kvgauge.shapes.types import ModelShape

# Real ones are 1 to 60 kB.
MAX_CONFIG_BYTES = 1 << 20


class Facts(Protocol):
    """What a layout's reader returns."""

    def shape(self, name: str, source: str) -> ModelShape:
        """The model as its cache and its weights see it."""


Reader = Callable[[Fields], Facts]

# Of decoders, by the `model_type` of the decoder itself.
DECODERS: dict[str, Reader] = {
    **dict.fromkeys(families.FAMILIES, families.read),
    **dict.fromkeys(linear.DELTA_NETS, linear.read_delta_net),
    **dict.fromkeys(mla.LATENT, mla.read),
    **dict.fromkeys(older.NAMES, older.read),
    "RefinedWeb": older.read_falcon,
    "RefinedWebModel": older.read_falcon,
    "bamba": ssm.read_bamba,
    "deci": perlayer.read_deci,
    "dbrx": older.read_dbrx,
    "falcon": older.read_falcon,
    "falcon_h1": ssm.read_falcon_h1,
    "falcon_mamba": ssm.read_mamba,
    "gemma3n_text": perlayer.read_gemma3n,
    "gemma4_text": perlayer.read_gemma4,
    "gemma4_unified_text": perlayer.read_gemma4,
    "granitemoehybrid": ssm.read_granite,
    "jamba": ssm.read_jamba,
    "kimi_linear": linear.read_kimi,
    "lfm2": conv.read,
    "lfm2_moe": conv.read,
    "llama4_text": chunked.read,
    "mamba": ssm.read_mamba,
    "mamba2": ssm.read_mamba2,
    "mimo_v2_flash": perlayer.read_mimo_v2,
    "minimax": lightning.read,
    "mpt": older.read_mpt,
    "nemotron-nas": perlayer.read_nas,
    "nemotron_h": nemotron_h.read,
    "openelm": perlayer.read_openelm,
    "step3p5": step.read,
    "zamba2": ssm.read_zamba2,
}
# And of models around one, which stands in their `text_config`.
READERS: dict[str, Reader] = {
    **DECODERS,
    **{outer: nested.reader(outer, DECODERS) for outer in nested.INNER},
}
_MTP_FIELDS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules")


def read_config(path: str | os.PathLike[str]) -> ModelShape:
    """The shape of the model that a config.json describes; UserError for anything else.

    UnsupportedLayout where it is a model configuration whose cache layout is not known here.
    """
    where = short(os.fspath(path), 200)
    fields = parse_fields(read_bounded(path, MAX_CONFIG_BYTES), where)
    model_type = fields.text("model_type")
    reader = READERS.get(model_type)
    if reader is None:
        raise fields.unsupported("model_type", f"not one of the {len(READERS)} that are known")
    try:
        shape = reader(fields).shape(_model_name(Path(path)), where)
    except UserError as error:
        if where in str(error):
            raise
        raise UserError(f"{where}: {error}") from None
    guard.refuse_unknown_layout(fields)
    return replace(shape, notes=_notes(fields, shape))


def _notes(fields: Fields, shape: ModelShape) -> tuple[str, ...]:
    objects = [fields, *fields.inner]
    notes = [*fields.notes, *stored.notes(objects)]
    if any(inside.values.get(name) for inside in objects for name in _MTP_FIELDS):
        notes.append("multi-token-prediction layers are not counted, neither cache nor weights")
    if shape.params_total is None:
        notes.append("weights are not counted: the reader does not state all of them")
    return (*notes, *guard.read_past(fields))


def _model_name(path: Path) -> str:
    # A config.json is named by its folder, a copy such as `llama.json` by itself.
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return short(name) or "model"
