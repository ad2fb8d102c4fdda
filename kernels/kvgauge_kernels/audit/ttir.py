"""Triton's own intermediate code as text: what the loads of a kernel's loop move, without running it."""

from __future__ import annotations

import re

_LOOP = re.compile(r"scf\.for .*?\n(.*?)\n\s*scf\.yield", re.DOTALL)
_LOAD = re.compile(r"= tt\.load .* : (tensor<[^>]*!tt\.ptr<\w+>>|!tt\.ptr<\w+>)")
_TYPE = re.compile(r"(?:tensor<([\dx]*)x)?!tt\.ptr<([a-z]+)(\d+)>")


def loop_loads(ttir: str) -> list[tuple[tuple[int, ...], str, int]]:
    """The loads of the innermost loop that has any: shape, kind of number (`f`, `bf`, `i`), its bits."""
    for body in _LOOP.findall(ttir):
        loads = [_TYPE.search(found) for found in _LOAD.findall(body)]
        if loads:
            return [
                (tuple(map(int, m[1].split("x"))) if m[1] else (), m[2], int(m[3]))
                for m in loads
                if m is not None
            ]
    return []


def bytes_per_token(
    ttir: str,
    block_n: int,
    dims: tuple[int, int],
    padded: tuple[int, int],
    group: int | None = None,
) -> float | None:
    """Bytes of K, V and their scales that the loop moves for a token of one K/V head; None without.

    Tiles of rows count the share of their columns that the mask lets through: `dims` of `padded`, for
    the two tiles in the order of their loads; tiles of scales and zeros likewise, a column to `group`
    elements. Page tables (one-dimensional integers) are left out: a page's entry serves all its tokens.
    """
    loads = loop_loads(ttir)
    whole = [(shape, bits) for shape, kind, bits in loads if len(shape) == 2 and kind == "i"]
    floats = [(shape, bits) for shape, kind, bits in loads if kind != "i"]
    tiles = whole or [(shape, bits) for shape, bits in floats if len(shape) == 2]
    scales = [(shape, bits) for shape, bits in floats if len(shape) == 1]
    grouped = [(shape, bits) for shape, bits in floats if len(shape) == 2 and whole]
    if len(tiles) != len(dims) or len(grouped) != (4 if group else 0):
        return None
    total_bits = 0.0
    for (shape, bits), dim, width in zip(tiles, dims, padded, strict=True):
        total_bits += shape[0] * shape[1] * bits * dim / width
    total_bits += sum(shape[0] * bits for shape, bits in scales)
    # A scale and a zero of each group: K's two, then V's.
    for (shape, bits), dim in zip(grouped, (dims[0], dims[0], dims[1], dims[1]), strict=False):
        total_bits += shape[0] * bits * -(-dim // (group or dim))
    return total_bits / 8 / block_n
