"""The header of a GGUF file, walked within bounds: metadata and tensor table, no tensor data.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The walk is the
project's own: the `gguf` package trusts every length that the file states and builds an array for
each of 100,000 vocabulary entries (seconds and hundreds of MB); the tests hold it against that one.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from kvgauge.errors import UserError, short
from kvgauge.shapes.files import open_regular
from kvgauge.shapes.types import MAX_LAYERS

# The longest headers are vocabularies: about 20 MB with 500,000 entries.
MAX_HEADER_BYTES = 64 << 20
MAX_KEYS = 10_000
MAX_TENSORS = 200_000
MAX_NAME_BYTES = 1 << 10
MAX_KEPT_TEXT_BYTES = 1 << 10
MAX_TEXTS = 2_000_000  # in all lists together
MAX_DIMS = 4
MAX_ELEMENTS = 1 << 48

_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9

Scalar = int | float | bool
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that no shape needs: a long text, or a list of `length` entries."""

    length: int


Value = Scalar | str | tuple[Scalar, ...] | Skipped


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by key, and the dimensions of each tensor by its name (fastest-running first)."""

    where: str
    metadata: dict[str, Value]
    tensors: dict[str, tuple[int, ...]]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Walk the header; UserError, naming the file, where it is not one or does not fit the file."""
    where = short(os.fspath(path), 200)
    with open_regular(path) as (file, size):
        cursor = _Cursor(where, file, size)
        try:
            return _read(cursor)
        except OSError as error:
            raise UserError(f"{where}: cannot be read: {error.strerror}") from None


@dataclass(slots=True)
class _Cursor:
    """Reads forward; every length is held against the file's size before it is believed."""

    where: str
    file: BinaryIO
    size: int
    at: int = 0
    order: str = "<"
    texts: int = 0

    def take(self, count: int) -> bytes:
        self._advance(count)
        data = self.file.read(count)
        if len(data) != count:
            raise self.error("the file ends inside the header")
        return data

    def skip(self, count: int) -> None:
        self._advance(count)
        self.file.seek(self.at)

    def _advance(self, count: int) -> None:
        self.at += count
        if self.at > self.size:
            raise self.error(
                f"truncated: the header claims {self.at} bytes, the file has {self.size}"
            )
        if self.at > MAX_HEADER_BYTES:
            raise self.error(f"the header claims more than {MAX_HEADER_BYTES} bytes")

    def number(self, code: str) -> Scalar:
        value: Scalar = struct.unpack(self.order + code, self.take(struct.calcsize(code)))[0]
        return value

    def count(self, code: str = "Q") -> int:
        return int(self.number(code))

    def name(self) -> str:
        length = self.count()
        if length > MAX_NAME_BYTES:
            raise self.error(f"a name of {length} bytes, at most {MAX_NAME_BYTES} are believed")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.error("a name that is not UTF-8") from None

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.where}: not a readable GGUF file: {problem}")


def _read(cursor: _Cursor) -> Header:
    if cursor.size < 24:
        raise cursor.error(f"{cursor.size} bytes, a header has at least 24")
    if cursor.take(4) != b"GGUF":
        raise cursor.error("it does not begin with GGUF")
    version = cursor.count("I")
    if version & 0xFFFF == 0:  # written on a machine of the other byte order
        cursor.order, version = ">", int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in (2, 3):
        raise cursor.error(f"version {version}, known are 2 and 3")
    tensor_count, key_count = cursor.count(), cursor.count()
    if tensor_count > MAX_TENSORS:
        raise cursor.error(f"claims {tensor_count} tensors, at most {MAX_TENSORS} are believed")
    if key_count > MAX_KEYS:
        raise cursor.error(f"claims {key_count} metadata keys, at most {MAX_KEYS} are believed")
    metadata = _unique(cursor, ((cursor.name(), _value(cursor)) for _ in range(key_count)))
    table = _unique(cursor, ((cursor.name(), _tensor(cursor)) for _ in range(tensor_count)))
    _check_offsets(cursor, metadata, {name: offset for name, (_, offset) in table.items()})
    return Header(cursor.where, metadata, {name: dims for name, (dims, _) in table.items()})


def _unique(cursor: _Cursor, pairs: Iterator[tuple[str, T]]) -> dict[str, T]:
    result: dict[str, T] = {}
    for name, value in pairs:
        if name in result:
            raise cursor.error(f"{short(name)} stands twice")
        result[name] = value
    return result


def _value(cursor: _Cursor) -> Value:
    kind = cursor.count("I")
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _TEXT:
        return _text(cursor)
    if kind == _ARRAY:
        return _array(cursor)
    raise cursor.error(f"unknown metadata type {kind}")


def _text(cursor: _Cursor) -> str | Skipped:
    length = cursor.count()
    if length > MAX_KEPT_TEXT_BYTES:
        cursor.skip(length)
        return Skipped(length)
    return cursor.take(length).decode(errors="replace")


def _array(cursor: _Cursor) -> tuple[Scalar, ...] | Skipped:
    kind, length = cursor.count("I"), cursor.count()
    if kind in _SCALARS:
        code = _SCALARS[kind]
        if length > MAX_LAYERS:
            cursor.skip(length * struct.calcsize(code))
            return Skipped(length)
        data = cursor.take(length * struct.calcsize(code))
        return struct.unpack(f"{cursor.order}{length}{code}", data)
    if kind != _TEXT:
        raise cursor.error(f"a list of metadata type {kind}")
    cursor.texts += length
    if cursor.texts > MAX_TEXTS:
        raise cursor.error(f"lists of {cursor.texts} texts, at most {MAX_TEXTS} are believed")
    for _ in range(length):
        cursor.skip(cursor.count())
    return Skipped(length)


def _tensor(cursor: _Cursor) -> tuple[tuple[int, ...], int]:
    rank = cursor.count("I")
    if rank > MAX_DIMS:
        raise cursor.error(f"a tensor of {rank} dimensions, at most {MAX_DIMS} are believed")
    dims = tuple(cursor.count() for _ in range(rank))
    if not 0 < math.prod(dims) <= MAX_ELEMENTS:
        raise cursor.error(f"a tensor of dimensions {short(dims)}")
    cursor.skip(4)  # the storage type: the shape does not depend on it
    return dims, cursor.count()


def _check_offsets(cursor: _Cursor, metadata: dict[str, Value], offsets: dict[str, int]) -> None:
    # An interrupted download has a whole header and lacks its last tensors.
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise cursor.error(f"general.alignment={short(alignment)}")
    start = -(-cursor.at // alignment) * alignment
    for name, offset in offsets.items():
        if start + offset >= cursor.size:
            raise cursor.error(
                f"truncated: {short(name)} begins at byte {start + offset}, the file has {cursor.size}"
            )
