"""One section out of an ELF file: the instructions of a kernel, without what the build left beside them."""

from __future__ import annotations

import hashlib
import struct

SHORT_HASH = 16
"""Hexadecimal digits of a hash in limits and records."""

_HEADER = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")


def section(binary: bytes, name: str) -> bytes:
    """The bytes of that section of a 64-bit little-endian ELF file; raises ValueError."""
    if binary[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit little-endian ELF file")
    header = _HEADER.unpack_from(binary)
    table, count, names_at = header[5], header[11], header[12]
    sections = [_SECTION.unpack_from(binary, table + i * _SECTION.size) for i in range(count)]
    names = binary[sections[names_at][4] :]
    for entry in sections:
        if names[entry[0] :].split(b"\0", 1)[0] == name.encode():
            return binary[entry[4] : entry[4] + entry[5]]
    raise ValueError(f"the ELF file has no section {name}")


def code_hash(binary: bytes, kernel: str) -> str:
    """sha256 of the kernel's instructions: the same on every machine that compiled the same code."""
    names = (f".text.{kernel}", ".text")  # NVIDIA's, AMD's
    for name in names:
        try:
            return hashlib.sha256(section(binary, name)).hexdigest()
        except ValueError:
            if name == names[-1]:
                raise
    raise AssertionError
