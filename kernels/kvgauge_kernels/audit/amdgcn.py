"""AMD's machine code as text: pure functions over the assembly that Triton leaves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from kvgauge_kernels.audit.findings import Code

_FILE = re.compile(r"^\s*\.file\s+(\d+)\s+.*\"([^\"]*)\"")
_LINE = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
_INSTRUCTION = re.compile(r"^\s*([a-z][a-z0-9_]+)(?:\s|$)")
_LOAD = re.compile(r"(?:global|buffer|flat)_load_(?:lds_)?([a-z0-9_]+)")
_WIDTHS = {
    "dword": 32,
    "dwordx2": 64,
    "dwordx3": 96,
    "dwordx4": 128,
    "b32": 32,
    "b64": 64,
    "b128": 128,
}
_NARROW = 16
_FACTS = ("vgpr_count", "private_segment_fixed_size")


def read_amdgcn(assembly: str, rows: Mapping[int, str], file: str = "") -> Code:
    """What the assembly of one kernel says; `rows` and `file` as in `read_sass`. Raises ValueError.

    A register spilled to another one (AMD's accumulation registers) is no spill here: memory is.
    """
    facts = {}
    for name in _FACTS:
        found = re.search(rf"^\s*\.{name}:\s+(\d+)", assembly, re.MULTILINE)
        if found is None:
            raise ValueError(f"the assembly does not say .{name}")
        facts[name] = int(found[1])
    opcodes: Counter[str] = Counter()
    widths: dict[str, set[int]] = {}
    files: dict[str, str] = {}
    line = 0
    for text in assembly.splitlines():
        if (named := _FILE.match(text)) is not None:
            files[named[1]] = named[2]
        elif (at := _LINE.match(text)) is not None:
            line = int(at[2]) if files.get(at[1], "").endswith(file) else 0
        elif (found := _INSTRUCTION.match(text)) is not None:
            opcode = found[1]
            opcodes[opcode] += 1
            if line in rows and (load := _LOAD.fullmatch(opcode)) is not None:
                widths.setdefault(rows[line], set()).add(_WIDTHS.get(load[1], _NARROW))
    return Code(
        registers=facts["vgpr_count"],
        spills=sum(n for op, n in opcodes.items() if op.startswith("scratch_")),
        local_bytes=facts["private_segment_fixed_size"],
        load_bits={kind: tuple(sorted(bits)) for kind, bits in sorted(widths.items())},
        async_copies=sum(n for op, n in opcodes.items() if "_load_lds_" in op),
        matrix={op: n for op, n in sorted(opcodes.items()) if op.startswith("v_mfma")},
    )
