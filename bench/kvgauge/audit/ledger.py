"""The ledger of one logged size: what the formula accounts for, and the remainder on a line of its own."""

from __future__ import annotations

from fractions import Fraction

from kvgauge.audit.context import Context
from kvgauge.audit.expect import Expectation
from kvgauge.audit.sizes import Part, metadata_bytes, token_bytes
from kvgauge.audit.stored import PARTS
from kvgauge.audit.types import Finding, LedgerRow, LogLedger

ROUNDING = "the log's rounding"
UNEXPLAINED = "unexplained remainder"


def ledger_of(expected: Expectation, finding: Finding, context: Context) -> LogLedger | None:
    """Of a size of K and V (of one of them where the log prints no sum), or of vLLM's pool."""
    if finding.computed is None:
        return None
    if finding.what in PARTS:
        part = PARTS[finding.what]
        with_sum = finding.engine == "llama.cpp" and part != "kv"
        return None if with_sum else _stored(expected, finding, part)
    if finding.engine == "vllm" and finding.what in ("blocks", "tokens"):
        return _pool(expected, finding, context)
    return None


def _stored(expected: Expectation, finding: Finding, part: Part) -> LogLedger:
    ranges = expected.predict(expected.case)
    plain = ranges[0].middle
    agreed = next((r.middle for r in ranges if r.meets(expected.logged)), plain)
    per_token, share = token_bytes(expected.case, part), metadata_bytes(expected.case, part)
    metadata = int(plain) * share // per_token if per_token else 0
    name = "K and V elements" if part == "kv" else f"{part.upper()} elements"
    return _closed(
        finding.line,
        expected.logged.middle,
        (expected.logged.high - expected.logged.low) / 2,
        [
            LedgerRow(name, int(plain) - metadata),
            LedgerRow("format metadata (scales, minima)", metadata),
            LedgerRow("the pool's padding page", int(agreed - plain)),
        ],
    )


def _pool(expected: Expectation, finding: Finding, context: Context) -> LogLedger | None:
    weight = expected.unit_bytes
    if not expected.memories or weight is None:
        return None
    used = int(expected.logged.middle * weight)
    available = expected.memories[0]
    if finding.verdict == "agree":  # with one of the ranks: the nearest
        available = min(expected.memories, key=lambda memory: abs(memory.middle - used))
    half = (available.high - available.low) / 2
    rest, block = available.middle - used, weight * max(1, context.block_tokens or 16)
    rows = [LedgerRow(f"K and V of {finding.logged} {finding.what}", used)]
    if finding.verdict == "agree":
        spare = min(max(rest, Fraction(0)), block)
        rows.append(LedgerRow("left over, less than a block", int(spare)))
    return _closed(finding.line, available.middle, half, rows)


def _closed(line: int, logged: Fraction, half: Fraction, rows: list[LedgerRow]) -> LogLedger:
    """With the remainder: what rounding may be is called that, the rest is unexplained."""
    rows = [row for row in rows if row.bytes]
    rest = round(logged) - sum(row.bytes for row in rows)
    if abs(rest) <= half + 1:
        rows, rest = [*rows, LedgerRow(ROUNDING, rest)] if rest else rows, 0
    rows.append(LedgerRow(UNEXPLAINED, rest))
    return LogLedger(line, round(logged), round(half), tuple(rows))
