"""A .gguf file -> ModelShape, from its metadata and its tensor table.

Metadata keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weight counts are sums
over the tensor table, so they are what the file holds.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from kvgauge.errors import UnsupportedLayout, UserError, short
from kvgauge.shapes import weights
from kvgauge.shapes.gguf_header import Header, Scalar, read_header
from kvgauge.shapes.gguf_keys import Keys
from kvgauge.shapes.gguf_layouts import ARCHITECTURES
from kvgauge.shapes.types import MAX_DIM, ModelShape
from kvgauge.shapes.weights import NO_WEIGHTS, Weights

_UNDERSTOOD = frozenset({"attention.head_count_kv", "attention.sliding_window"})
# Tables of rotary factors, which are computed in other formats and no weights.
_NOT_WEIGHTS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)
# A step looks one row up in these; the token table too, unless it is the output head as well.
_LOOKED_UP = frozenset({"position_embd.weight"})
_EXPERT = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_up)(_exps|\.\d+)\.(weight|bias)")


def read_gguf(path: str | os.PathLike[str]) -> ModelShape:
    """The shape of the model in a .gguf file; UserError for anything else.

    Of a model split into several files any one will do, but its weights are then not counted.
    """
    header = read_header(path)
    arch = header.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        hint = f"{header.where}: known: {', '.join(ARCHITECTURES)}"
        raise UnsupportedLayout("general.architecture", arch, hint)
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise UserError(f"{header.where}: general.type={short(kind)}: must be model")
    keys = Keys(header, arch)
    known = ARCHITECTURES[arch]
    keys.refuse_unknown_layout(_UNDERSTOOD | known.keys)
    if keys.get("nextn_predict_layers"):
        raise keys.unsupported("nextn_predict_layers", "which blocks these are is not known")
    hidden = keys.integer("embedding_length")
    vocab = _vocab(header, keys, hidden)
    try:
        layers = known.read(keys, hidden, known)
        count, name = _weights(header, keys), short(Path(path).stem)
        return weights.model(name, layers, hidden, vocab, count, header.where)
    except UserError as error:
        raise keys.located(error) from None


def _vocab(header: Header, keys: Keys, hidden: int) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None:  # another file of the set holds it
        return keys.integer("vocab_size")
    if len(table) != 2 or table[0] != hidden or table[1] > MAX_DIM:
        raise UserError(
            f"{header.where}: token_embd.weight: must be {hidden} x vocabulary, found {short(table)}"
        )
    return table[1]


def _weights(header: Header, keys: Keys) -> Weights | None:
    files: Scalar | object = header.metadata.get("split.count", 1)
    if not header.tensors or files not in (0, 1):
        return None
    tied = "output.weight" not in header.tensors
    experts = used = 1
    if header.metadata.get(f"{keys.arch}.expert_count"):
        experts = keys.integer("expert_count")
        used = keys.integer("expert_used_count", high=experts)
    count = NO_WEIGHTS
    for name, dims in header.tensors.items():
        elements = math.prod(dims)
        if name in _NOT_WEIGHTS:
            continue
        looked_up = name in _LOOKED_UP or (name == "token_embd.weight" and not tied)
        if looked_up:
            count += Weights(elements, 0)
        elif _EXPERT.fullmatch(name):
            count += Weights(elements, elements * used // experts, elements, experts, used)
        else:
            count += Weights(elements, elements)
    return count
