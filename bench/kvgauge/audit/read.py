"""A log file -> start-ups and their facts. The file is hostile until read: bounded, cleaned, cut."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from kvgauge.audit import llamacpp, sglang, tensorrt_llm, vllm
from kvgauge.audit.patterns import Pattern, facts_in
from kvgauge.audit.types import EngineName, LogFact, What
from kvgauge.errors import UserError, short
from kvgauge.shapes.files import read_bounded

MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 16 * 2**10  # SGLang prints all of its settings on one line of 6 to 8 KiB
MAX_FACTS = 5_000

ENGINE_TABLES: dict[EngineName, tuple[Pattern, ...]] = {
    "llama.cpp": llamacpp.TABLE,
    "vllm": vllm.TABLE,
    "sglang": sglang.TABLE,
    "tensorrt-llm": tensorrt_llm.TABLE,
}
# Facts that set something; a file with no other has nothing to audit.
SETTINGS: frozenset[What] = frozenset({
    "tp", "dp", "dp_attention", "pp", "kv_format", "k_format", "v_format", "model_dtype", "block_tokens",
    "max_tokens", "model", "cache_kind", "start", "context_tokens", "request_tokens", "layers",
    "streams", "model_layers",
})  # fmt: skip
LOOKED_FOR = (
    "llama.cpp 'KV self size', 'llama_kv_cache: size' or 'llama_memory_recurrent: size'; vLLM "
    "'# GPU blocks', 'GPU KV cache size', 'Maximum concurrency' or 'Available KV cache memory'; SGLang "
    "'KV Cache is allocated'; TensorRT-LLM 'max tokens in paged KV cache' or 'primary pool'"
)
# Colours and cursor movements as terminals know them, and as syslog writes the escape (#033).
_ESCAPES = re.compile(rb"(?:\x1b|#033)\[[0-9;?]{0,16}[A-Za-z]")
# What a line with a fact holds; the rest of a long log is passed by quickly.
_PROMISING = re.compile(
    rb"KV|kv_|kv-|cells|blocks|parallel_size|[tdp]p_size|enable_dp_attention|page_size|max_total_num|max_seq_len"
    rb"|n_ctx|Cache is allocated|LLM engine|ServerArgs|dtype=torch|loaded meta data|general\.name"
    rb"|block_size|per block|per sequence|Maximum concurrency|max_model_len|maxSequenceLen|MPI size"
    rb"|Engine version|non-default args|kv self size|llama_memory_recurrent|max seq len"
)


@dataclass(frozen=True, slots=True)
class StartUp:
    """The facts of one engine's start, in the file's order; `number` counts from 1 over the file."""

    engine: EngineName
    number: int
    facts: tuple[LogFact, ...]


def read_log(path: str | os.PathLike[str]) -> tuple[StartUp, ...]:
    """The start-ups in a file; UserError where it cannot be read or states no KV figure."""
    return start_ups(read_bounded(path, MAX_FILE_BYTES), short(os.fspath(path)))


def start_ups(data: bytes, where: str) -> tuple[StartUp, ...]:
    """The start-ups in the bytes of a log."""
    groups: list[tuple[EngineName, list[LogFact]]] = []
    latest: dict[EngineName, list[LogFact]] = {}
    for fact in _facts(data, where):
        current = latest.get(fact.engine)
        if current is None or (fact.what == "start" and _has_figures(current)):
            current = latest[fact.engine] = []
            groups.append((fact.engine, current))
        current.append(fact)
    found = [(engine, facts) for engine, facts in groups if _has_figures(facts)]
    if not found:
        raise UserError(f"{where}: no KV-cache line found; looked for {LOOKED_FOR}")
    return tuple(
        StartUp(engine, number, tuple(facts)) for number, (engine, facts) in enumerate(found, 1)
    )


def lines_of(facts: tuple[LogFact, ...]) -> list[list[LogFact]]:
    """The facts, those of one line together."""
    lines: dict[int, list[LogFact]] = {}
    for fact in facts:
        lines.setdefault(fact.line, []).append(fact)
    return list(lines.values())


def _has_figures(facts: list[LogFact]) -> bool:
    return any(fact.what not in SETTINGS for fact in facts)


def _facts(data: bytes, where: str) -> Iterator[LogFact]:
    count = 0
    for number, text in _lines(data):
        for engine, table in ENGINE_TABLES.items():
            for fact in facts_in(engine, table, number, text):
                count += 1
                if count > MAX_FACTS:
                    raise UserError(
                        f"{where}: line {number}: more than {MAX_FACTS} KV facts; cut the log to its "
                        "start-up"
                    )
                yield fact


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    """The promising lines with their numbers; LF, CRLF and lone CR (progress bars) end a line.

    NUL bytes (UTF-16, torn writes) are dropped. Searched as a whole, since most lines say nothing.
    """
    data = data.replace(b"\0", b"").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    number, end = 1, 0
    while (match := _PROMISING.search(data, end)) is not None:
        start = data.rfind(b"\n", end, match.start()) + 1 or end
        number += data.count(b"\n", end, start)
        found = data.find(b"\n", match.start())
        end = len(data) if found < 0 else found
        if match.start() - start < MAX_LINE_BYTES:
            line = data[start : min(end, start + MAX_LINE_BYTES)]
            yield number, _ESCAPES.sub(b"", line).decode("utf-8", "replace")
