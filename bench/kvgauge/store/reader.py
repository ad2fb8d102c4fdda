"""The run folder, read. It is hostile input: sizes are bounded and every value is checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from kvgauge.errors import UserError, short
from kvgauge.schema import MANIFEST_SCHEMA, SCHEMA, Manifest, Measurement, Probe, Record, Run
from kvgauge.store.folder import MANIFEST, RECORDS

MAX_MANIFEST_BYTES = 16 * 2**20
MAX_RECORDS_BYTES = 512 * 2**20
MAX_LINE_BYTES = 4 * 2**20
MAX_NUMBER = 1e24
MAX_SAMPLES = 10_000

T = TypeVar("T")


def load_run(folder: str | Path) -> Run:
    """Read a run folder.

    A last line without its end (the writer died) is dropped and counted in `torn_lines`. Raises
    UserError, naming file, line and field, for anything else that is not as the schema says.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    manifest = _manifest(path / MANIFEST)
    records, torn = _records(path / RECORDS)
    return Run(manifest, records, torn)


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a regular file of at most `limit_bytes`; raises UserError otherwise."""
    try:
        if not path.is_file():
            wrong = "not a regular file" if path.exists() else "no such file"
            raise UserError(f"{path}: {wrong}")
        size_bytes = path.stat().st_size
        if size_bytes > limit_bytes:
            raise UserError(f"{path}: {size_bytes} bytes, at most {limit_bytes} are read")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def decode(data: bytes, kind: type[T], where: str) -> T:
    """JSON to a typed value; raises UserError with the place and what was expected."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UserError) as error:
        raise UserError(f"{where}: {error}") from None


def convert(value: object, kind: type[T], where: str) -> T:
    """Plain JSON values to a typed one; raises UserError as `decode`."""
    try:
        return msgspec.convert(value, type=kind)
    except (msgspec.MsgspecError, UserError) as error:
        raise UserError(f"{where}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Versioned:
    schema: str


def _decode_schema(data: bytes, kind: type[T], schema: str, where: str) -> T:
    """A value of a schema; the version is looked at first: another one's fields would mislead."""
    said = decode(data, _Versioned, where).schema
    if said != schema:
        raise UserError(
            f"{where}: schema '{short(said)}', this kvgauge reads '{schema}': "
            "read it with the kvgauge that wrote it, or measure again"
        )
    return decode(data, kind, where)


def _manifest(path: Path) -> Manifest:
    data = read_bounded(path, MAX_MANIFEST_BYTES)
    manifest = _decode_schema(data, Manifest, MANIFEST_SCHEMA, str(path))
    spent = {} if manifest.spent is None else asdict(manifest.spent)
    check_numbers(spent, str(path), "spent")
    if min(spent.values(), default=0) < 0:
        raise UserError(f"{path}: spent must not be below 0")
    return manifest


def _records(path: Path) -> tuple[tuple[Record, ...], int]:
    lines = read_bounded(path, MAX_RECORDS_BYTES).split(b"\n")
    torn = 1 if lines.pop() else 0
    return tuple(_record(line, f"{path}:{n}") for n, line in enumerate(lines, 1)), torn


def _record(line: bytes, where: str) -> Record:
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"{where}: {len(line)} bytes, at most {MAX_LINE_BYTES} a line")
    record = _decode_schema(line, Record, SCHEMA, where)
    check_numbers(record.to_json(), where)
    _check_record(record, where)
    return record


def check_numbers(value: object, where: str, field: str = "") -> None:
    """Refuse numbers that no machine gives: arithmetic on them would overflow later, elsewhere."""
    if isinstance(value, dict):
        for name, inner in value.items():
            check_numbers(inner, where, f"{field}.{name}" if field else name)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_numbers(inner, where, field)
    elif isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER:
        raise UserError(f"{where}: {field} must be between -1e24 and 1e24")


def _check_record(record: Record, where: str) -> None:
    trace = record.trace
    least = {
        "trace.batch": trace.batch - 1, "trace.depth_tokens": trace.depth_tokens,
        "trace.prompt": trace.prompt, "trace.think": trace.think, "trace.answer": trace.answer,
        "predicted.kv_bytes": record.predicted.kv_bytes,
    }  # fmt: skip
    for field, value in least.items():
        if value < 0:
            raise UserError(f"{where}: {field} is too small")
    check_measured(record.measured, record.probe, where)


def check_measured(measured: Measurement | None, probe: Probe | None, where: str) -> None:
    """Refuse times and rates that no machine gives; raises UserError that says where."""
    if measured is not None and measured.time_s is not None:
        time = measured.time_s
        if not 1 <= len(time.samples) == time.n <= MAX_SAMPLES:
            raise UserError(f"{where}: measured.time_s must hold n samples, 1 to {MAX_SAMPLES}")
        if min(*time.samples, time.median, time.low, time.high) <= 0:
            raise UserError(f"{where}: measured.time_s must be above 0")
    if probe is not None and min(
        probe.read_bytes_per_s, probe.copy_bytes_per_s, probe.flops_per_s,
        *probe.read_samples_bytes_per_s, *(probe.ping_pong_ns or ()),
        1.0 if probe.integer_ops_per_s is None else probe.integer_ops_per_s,
    ) <= 0:  # fmt: skip
        raise UserError(f"{where}: probe rates must be above 0")
