"""Configurations that were timed on the GPU at hand, kept in a file: which one a launch takes, and whence.

A choice is one of `candidates`, which the audit's rules were asked of before it was timed. The file is
another's for another GPU, triton or source of the kernels, and then the table holds and a note says why.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from kvgauge_kernels.triton import configs

SCHEMA = 1
MAX_BYTES = 256 * 2**10
_SOURCES = ("kernels", "packed", "latents", "numbers", "tokens", "configs", "launch", "splits")


@dataclass(frozen=True, slots=True)
class Cache:
    """What a choice is for."""

    format: str
    k_dim: int
    v_dim: int
    paged: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration that won for a cache, and its time over that of the table's."""

    cache: Cache
    block_n: int
    num_warps: int
    num_stages: int
    programs_per_sm: int
    times_the_table: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The file: for which code on which GPU, and the choices."""

    schema: int
    gpu: str
    triton: str
    sources: str
    choices: tuple[Choice, ...]


def candidates(entry: configs.Config) -> tuple[configs.Config, ...]:
    """The table's entry, then its neighbours: tokens, stages and programs, one step each way."""
    found = [
        replace(entry, block_n=n, num_stages=stages, programs_per_sm=programs, reason="tuned")
        for n in (entry.block_n // 2, entry.block_n, entry.block_n * 2)
        for stages in (entry.num_stages - 1, entry.num_stages, entry.num_stages + 1)
        for programs in (entry.programs_per_sm // 2, entry.programs_per_sm, entry.programs_per_sm * 2)
        if n >= configs.ROWS and stages > 1 and programs
    ]  # fmt: skip
    return (entry, *(c for c in found if shape_of(c) != shape_of(entry)))


def shape_of(config: configs.Config) -> tuple[int, int, int, int]:
    """What of a configuration is the machine's; the rest are words."""
    return config.block_n, config.num_warps, config.num_stages, config.programs_per_sm


def named(config: configs.Config) -> str:
    """As limits.json names it, and the programs a multiprocessor that it counts on."""
    return "n{}-w{}-s{}-p{}".format(*shape_of(config))


def config_for(
    device: torch.device, room: configs.Room, cache: Cache
) -> tuple[configs.Config, str]:
    """The configuration for a launch, and `table`, `tuned` or why what is kept is not taken.

    Raises ValueError as `configs.choose_for`.
    """
    entry = configs.choose_for(room, cache.format, cache.k_dim, cache.v_dim, paged=cache.paged)
    if _trial:
        return _trial[-1], "on trial"
    kept, note = _kept(device)
    choice = kept.get(cache)
    if choice is None:
        return entry, note
    shape = (choice.block_n, choice.num_warps, choice.num_stages, choice.programs_per_sm)
    for config in candidates(entry):
        if shape_of(config) == shape:
            return config, "tuned"
    return entry, "table; the tuned one is none of the candidates"


_trial: list[configs.Config] = []


@contextmanager
def on_trial(config: configs.Config) -> Iterator[None]:
    """Every launch takes this configuration meanwhile."""
    _trial.append(config)
    try:
        yield
    finally:
        _trial.pop()


def path_for(gpu: str) -> Path:
    """Where the choices for GPUs of that name are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (
        Path(base) / "kvgauge" / "tuned" / f"{hashlib.sha256(gpu.encode()).hexdigest()[:16]}.json"
    )


def code_now() -> tuple[str, str]:
    """triton's version, and the hash of all that shapes a kernel and its launch."""
    import triton

    files = [Path(__file__).with_name(f"{name}.py") for name in _SOURCES]
    data = b"\0".join(file.read_bytes() for file in files)
    return str(triton.__version__), hashlib.sha256(data).hexdigest()[:16]


def save(gpu: str, choices: tuple[Choice, ...]) -> Path:
    """Keep those choices for that GPU, in place of all that were there; returns the file. Raises OSError."""
    import json

    path, (version, sources) = path_for(gpu), code_now()
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(f".{os.getpid()}")
    half.write_text(json.dumps(asdict(Tuned(SCHEMA, gpu, version, sources, choices)), indent=1))
    half.replace(path)
    _kept.cache_clear()
    return path


def load(gpu: str) -> tuple[dict[Cache, Choice], str]:
    """The choices for that GPU by cache, and `table`, with the reason where a file is not taken."""
    path = path_for(gpu)
    try:
        if not path.is_file():
            return {}, "table"
        import msgspec

        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"over {MAX_BYTES} bytes")
        file = msgspec.json.decode(path.read_bytes(), type=Tuned)
    except (OSError, ValueError, ImportError, RecursionError) as error:
        return {}, f"table; {path} is not read: {' '.join(str(error).split())[:120]}"
    version, sources = code_now()
    for what, found, now in (
        ("schema", file.schema, SCHEMA), ("GPU", file.gpu, gpu),
        ("triton", file.triton, version), ("source", file.sources, sources),
    ):  # fmt: skip
        if found != now:
            return {}, f"table; {path} is for another {what}: {str(found)[:40]}"
    return {choice.cache: choice for choice in file.choices}, "table"


@lru_cache
def _kept(device: torch.device) -> tuple[dict[Cache, Choice], str]:
    if device.type != "cuda":
        return {}, "table"
    return load(torch.cuda.get_device_name(device))
