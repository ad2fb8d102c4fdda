"""GGUF files that tests write byte by byte: headers only, true or lying."""

from __future__ import annotations

import struct
from collections.abc import Mapping

U32, FLOAT, TEXT, ARRAY = 4, 6, 8, 9


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(item: object) -> bytes:
    """One metadata value with its type before it."""
    if isinstance(item, str):
        return struct.pack("<I", TEXT) + text(item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT, item)
    if isinstance(item, list) and item and isinstance(item[0], str):
        body = b"".join(text(entry) for entry in item)
        return struct.pack("<IIQ", ARRAY, TEXT, len(item)) + body
    if isinstance(item, list):
        return struct.pack(f"<IIQ{len(item)}I", ARRAY, U32, len(item), *item)
    assert isinstance(item, int)
    return struct.pack("<II", U32, item)


def gguf(
    metadata: Mapping[str, object],
    tensors: Mapping[str, tuple[int, ...]],
    *,
    version: int = 3,
    data_bytes: int = 64,
) -> bytes:
    """A file whose tensors all begin at offset 0 of the data that follows the header."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    keys = b"".join(text(key) + value(item) for key, item in metadata.items())
    table = b"".join(
        text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, 0)
        for name, dims in tensors.items()
    )
    return head + keys + table + bytes(32 + data_bytes)


LLAMA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
LLAMA_TENSORS = {"token_embd.weight": (64, 1000), "blk.0.attn_q.weight": (64, 64)}
