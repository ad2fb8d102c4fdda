"""NVIDIA's machine code as text: pure functions over what nvdisasm and cuobjdump print."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from kvgauge_kernels.audit.findings import Code

_LINE = re.compile(r"//## File \"([^\"]*)\", line (\d+)")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.\w+)*)")
_USAGE = re.compile(r"REG:(\d+)\s+STACK:(\d+)\s+SHARED:(\d+)\s+LOCAL:(\d+)")
_LOADS = ("LDG", "LDGSTS", "UBLKCP", "UTMALDG")
_BULK = ("UBLKCP", "UTMALDG")  # copies of whole tiles by the copy engine: as wide as memory is
_MATRIX = re.compile(r"(?:H|I|Q|D|B|O)G?MMA|UTC\w*MMA")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}


def read_sass(listing: str, usage: str, rows: Mapping[int, str], file: str = "") -> Code:
    """What `nvdisasm -g` (listing) and `cuobjdump --dump-resource-usage` say of one kernel.

    `rows` names the source lines that load K (`K`) and V (`V`), of the file whose name ends so: a kernel
    has lines of other files in it, those of functions that it calls. Raises ValueError where the usage
    is not there.
    """
    used = _USAGE.search(usage)
    if used is None:
        raise ValueError("cuobjdump printed no resource usage")
    registers, stack, _shared, local = map(int, used.groups())
    opcodes: Counter[str] = Counter()
    widths: dict[str, set[int]] = {}
    line = 0
    for text in listing.splitlines():
        if (at := _LINE.search(text)) is not None:
            line = int(at[2]) if at[1].endswith(file) else 0
        elif (found := _INSTRUCTION.search(text)) is not None:
            opcode = found[1]
            opcodes[opcode] += 1
            if line in rows and opcode.split(".")[0] in _LOADS:
                widths.setdefault(rows[line], set()).add(load_bits(opcode))
    return Code(
        registers=registers,
        spills=sum(n for op, n in opcodes.items() if op.split(".")[0] in ("LDL", "STL")),
        local_bytes=stack + local,
        load_bits={kind: tuple(sorted(bits)) for kind, bits in sorted(widths.items())},
        async_copies=sum(n for op, n in opcodes.items() if op.split(".")[0] in _LOADS[1:]),
        matrix={op: n for op, n in sorted(opcodes.items()) if _MATRIX.match(op)},
    )


def load_bits(opcode: str) -> int:
    """Bits that one thread loads by an instruction such as `LDG.E.128`; 32 where none is said."""
    base, *suffixes = opcode.split(".")
    if base in _BULK:
        return 128
    return next((_WIDTHS[s] for s in suffixes if s in _WIDTHS), 32)
