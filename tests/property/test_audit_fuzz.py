"""The log auditor on hostile bytes: an audit or one clear error, whatever the file holds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit_for_tests import GATED_DELTA, GPT_OSS, LOGS, MLA, plain
from kvgauge.audit.context import Options
from kvgauge.audit.judge import audit_log, audit_text
from kvgauge.audit.read import MAX_FILE_BYTES
from kvgauge.errors import UserError
from kvgauge.formats import FORMATS
from kvgauge.shapes.types import ModelShape

SHAPES = (plain(32, 8, 128), GPT_OSS, MLA, GATED_DELTA)
SAMPLES = [path.read_bytes() for path in sorted(LOGS.glob("*.log"))]
LINES = [line for sample in SAMPLES for line in sample.splitlines(keepends=True)]
WORDS = [word for line in LINES for word in line.split(b" ")] + [
    b"9" * 40,
    b"-1",
    b"0",
    b"\0",
    b"1e9",
]


def survives(data: bytes, shape: ModelShape, options: Options) -> None:
    try:
        audit = audit_text(data, "fuzzed", shape, options)
    except UserError:
        return
    json.dumps(audit.to_json(), allow_nan=False)
    for finding in audit.findings:
        assert finding.reason or finding.verdict != "cannot tell"
    for ledger in audit.ledgers:
        assert sum(row.bytes for row in ledger.rows) == ledger.logged_bytes


shapes = st.sampled_from(SHAPES)
options = st.builds(
    Options,
    kv_format=st.none() | st.sampled_from(sorted(FORMATS)),
    tp=st.none() | st.integers(1, 4096),
    tokens=st.lists(st.integers(1, 10**12), max_size=2).map(tuple),
)


@given(st.binary(max_size=400), shapes)
@settings(max_examples=100, deadline=None)
def test_any_bytes(data: bytes, shape: ModelShape) -> None:
    survives(data, shape, Options())


@given(st.lists(st.sampled_from(WORDS), max_size=40), shapes, options)
@settings(max_examples=150, deadline=None)
def test_words_in_any_order(words: list[bytes], shape: ModelShape, chosen: Options) -> None:
    survives(b" ".join(words), shape, chosen)


@given(st.lists(st.sampled_from(LINES), max_size=12), shapes, options)
@settings(max_examples=150, deadline=None)
def test_lines_in_any_order(lines: list[bytes], shape: ModelShape, chosen: Options) -> None:
    survives(b"".join(lines), shape, chosen)


@given(
    st.sampled_from(SAMPLES), st.integers(0, 2000), st.binary(max_size=6), shapes, st.integers(0, 9)
)
@settings(max_examples=150, deadline=None)
def test_torn_and_overwritten(
    sample: bytes, at: int, put: bytes, shape: ModelShape, digit: int
) -> None:
    data = sample[:at] + put + sample[at + len(put) :]
    survives(data.replace(b"%d" % digit, b"%d" % digit * 9, 3), shape, Options())


@given(st.sampled_from(LINES), st.text("0123456789,.", max_size=60), shapes)
@settings(max_examples=150, deadline=None)
def test_any_number_in_any_line(line: bytes, number: str, shape: ModelShape) -> None:
    for old in (
        b"1280.00",
        b"1952",
        b"3.81",
        b"4096",
        b"452,448",
        b"220480",
        b"34.52",
        b"16384",
        b"3.45",
    ):
        survives(line.replace(old, number.encode()), shape, Options())


def test_every_start_up_of_a_mixed_file_is_found() -> None:
    audit = audit_text(b"\n".join(SAMPLES), "mixed", SHAPES[0], Options())
    assert {f.engine for f in audit.findings} == {"llama.cpp", "vllm", "sglang", "tensorrt-llm"}


@pytest.mark.parametrize(
    "line",
    [
        b"llama_kv_cache: size = " + b" " * 4000,
        b"KV buffer size" * 300,
        b"KV self size = " * 270,
        b"tensor_parallel_size=" * 190,
        b"[TRT-LLM]" * 450,
        b"non-default args: 'block_size': '" * 120,
        b"kv self size  = " + b"1" * 4000,
        b"Worker_DP1_TP0 " * 270 + b"Available KV cache memory: 3.81 GiB",
        b"KV Cache is allocated. #tokens: " + b"1," * 1900,
        b"general.name     = " * 210,
        b"LLM engine (v" * 300,
        b"kv_size = 1," * 340,
        b"Load weight end. dtype" * 185,
    ],
)
def test_no_line_takes_long(line: bytes) -> None:
    started = time.process_time()
    survives(b"\n".join([line] * 200), SHAPES[0], Options())
    assert time.process_time() - started < 5


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="at most"):
        audit_log(path, SHAPES[0], Options())
