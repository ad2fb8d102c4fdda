"""What the audit finds in one compiled kernel, whatever the machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

LOAD_BITS = 128
"""What each load of K and V must have; scales and page tables may be narrower."""


@dataclass(frozen=True, slots=True)
class Code:
    """What a listing of machine code says by itself."""

    registers: int
    """Of one thread."""
    spills: int
    """Instructions that read or write local memory."""
    local_bytes: int
    """Local memory (stack) of one thread."""
    load_bits: dict[str, tuple[int, ...]]
    """Widths of the loads of each kind of row, in bits, each width once."""
    async_copies: int
    """Loads that go to shared memory without passing through registers."""
    matrix: dict[str, int]
    """Matrix instructions by name, and how often the listing has them."""


@dataclass(frozen=True, slots=True)
class Findings:
    """A kernel on a target: its code, what it takes of a multiprocessor, what its loop moves."""

    code: Code
    shared_bytes: int
    programs_per_sm: int
    bytes_per_token: float | None
    """What the loop's loads move for one token and K/V head, page table aside; None without a loop."""
    code_hash: str
    """sha256 of the instructions alone, so that audited and executed code can be compared."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Findings:
        """The inverse of `to_json`; raises what Python does for other values."""
        code = dict(values["code"])
        code["load_bits"] = {kind: tuple(bits) for kind, bits in code["load_bits"].items()}
        counts = [code[name] for name in ("registers", "spills", "local_bytes", "async_copies")]
        counts += [values["shared_bytes"], values["programs_per_sm"], *code["matrix"].values()]
        counts += [bits for widths in code["load_bits"].values() for bits in widths]
        if not all(isinstance(count, int) for count in counts):
            raise TypeError("counts must be integers")
        return cls(**{**values, "code": Code(**code)})


def faults_of(findings: Findings, *, rows: bool, programs: int, moved: bool = False) -> list[str]:
    """What no kernel may have, whatever its limits; `rows`: it reads K and V and multiplies matrices.

    `moved`: it reads rows to write them elsewhere, and their loads are marked as K's.
    `programs` is how many the configuration counts on a multiprocessor to hold.
    """
    code, faults = findings.code, []
    if code.spills or code.local_bytes:
        faults.append(
            f"spills: {code.spills} instructions, {code.local_bytes} bytes of local memory"
        )
    if findings.programs_per_sm < programs:
        faults.append(f"a multiprocessor holds {findings.programs_per_sm} programs, not {programs}")
    for kind in ("K", "V") if rows else ("K",) if moved else ():
        widths = code.load_bits.get(kind, ())
        if not widths:
            faults.append(f"no load of {kind} was found")
        elif min(widths) < LOAD_BITS:
            faults.append(f"{kind} is loaded {min(widths)} bits at a time, not {LOAD_BITS}")
    if rows and not code.matrix:
        faults.append("no matrix instruction")
    return faults
