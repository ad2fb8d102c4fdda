"""The committed limits: what each kernel took when it was last looked at, by version and target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvgauge_kernels.audit.elf import SHORT_HASH
from kvgauge_kernels.audit.findings import Findings

SCHEMA = 1
PATH = Path(__file__).parents[1] / "triton" / "limits.json"
MAX_BYTES = 1 << 23  # thirty times what all cases of two versions take


@dataclass(frozen=True, slots=True)
class Limit:
    """What a kernel may take at most, and must have at least."""

    registers: int
    shared_bytes: int
    programs_per_sm: int
    async_copies: int
    matrix: int
    code_hash: str
    """Of the code that the limits are of; another one is no fault by itself."""

    def __post_init__(self) -> None:
        counts = [getattr(self, name) for name in self.__slots__ if name != "code_hash"]
        if not all(isinstance(count, int) for count in counts):
            raise TypeError(f"limits must be integers: {counts}")

    @classmethod
    def of(cls, findings: Findings) -> Limit:
        """The limits that a kernel just meets."""
        code = findings.code
        return cls(
            code.registers, findings.shared_bytes, findings.programs_per_sm,
            code.async_copies, sum(code.matrix.values()), findings.code_hash[:SHORT_HASH],
        )  # fmt: skip

    def worse(self, findings: Findings) -> list[str]:
        """What of the findings is worse, in words."""
        now = Limit.of(findings)
        more = [
            f"{getattr(now, name)} {words}, at most {getattr(self, name)}"
            for name, words in (
                ("registers", "registers"),
                ("shared_bytes", "bytes of shared memory"),
            )
            if getattr(now, name) > getattr(self, name)
        ]
        fewer = [
            f"{getattr(now, name)} {words}, at least {getattr(self, name)}"
            for name, words in (
                ("programs_per_sm", "programs on a multiprocessor"),
                ("async_copies", "asynchronous copies"),
                ("matrix", "matrix instructions"),
            )
            if getattr(now, name) < getattr(self, name)
        ]
        return more + fewer


Limits = dict[str, dict[str, dict[str, Limit]]]
"""By triton version, target, and kernel with configuration."""


def load(path: Path = PATH) -> Limits:
    """The file's limits, none where it does not exist; raises ValueError where it is none of ours."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, at most {MAX_BYTES} are read")
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f'an object with "schema": {SCHEMA} is wanted')
        if "limits" not in values:
            raise ValueError('"limits" is missing')
        return {
            version: {
                target: {key: Limit(**limit) for key, limit in entries.items()}
                for target, entries in by_target.items()
            }
            for version, by_target in values["limits"].items()
        }
    except (TypeError, AttributeError, ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path}: no limits of this program: {error}") from error


def save(limits: Limits, path: Path = PATH) -> None:
    """Write the file, an entry a line, so that a change is one line of a diff."""
    lines: list[str] = []
    for version in sorted(limits):
        targets = []
        for target in sorted(limits[version]):
            entries = limits[version][target]
            rows = ",\n".join(
                f"    {json.dumps(key)}: {_compact(entries[key])}" for key in sorted(entries)
            )
            targets.append(f"   {json.dumps(target)}: {{\n{rows}\n   }}")
        lines.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(targets) + "\n  }")
    body = ",\n".join(lines)
    path.write_text(f'{{\n "schema": {SCHEMA},\n "limits": {{\n{body}\n }}\n}}\n')


def _compact(limit: Limit) -> str:
    values: dict[str, Any] = {name: getattr(limit, name) for name in Limit.__slots__}
    return json.dumps(values)
