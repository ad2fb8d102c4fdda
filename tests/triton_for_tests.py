"""Caches for the Triton kernels in drawn layouts, with NaN wherever no token is, and small devices."""

from __future__ import annotations

import importlib.util
import os
import struct
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from kernels_for_tests import DTYPES, as_stored
from kvgauge_kernels import KVView
from kvgauge_kernels.stored import stored_as
from kvgauge_kernels.triton.configs import PACKED_DIMS, SHARED_BYTES, Room
from kvgauge_kernels.triton.launch import Processor

HAS_TRITON = importlib.util.find_spec("triton") is not None
# int2-g128 has groups longer than most rows.
FORMATS = ["fp16", "bf16", "int8", "fp8_e4m3", "fp8_e5m2", "int4", "int4-g32", "int2", "int2-g128"]
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="needs triton: pip install triton")
INSIDE = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INSIDE, reason="runs in the interpreter's own process")
# It makes a number of an array of one element, which numpy refuses since 2.4.
new_interpreter = pytest.mark.skipif(
    HAS_TRITON
    and version("triton").startswith("3.6.")
    and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4),
    reason="triton 3.6's interpreter needs numpy below 2.4",
)


def elf(sections: dict[str, bytes]) -> bytes:
    """A small ELF file: header, the sections' bytes, names, table."""
    names, entries, body = b"\0", [], b""
    for name, content in {**sections, ".shstrtab": b""}.items():
        at = len(names)
        names += name.encode() + b"\0"
        entries.append((at, 64 + len(body), content))
        body += content
    names_at = 64 + len(body)
    table = names_at + len(names)
    head = b"\x7fELF\x02\x01" + bytes(10)
    head += struct.pack(
        "<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, table, 0, 64, 0, 0, 64, len(entries), len(entries) - 1
    )
    rows = [
        struct.pack("<IIQQQQIIQQ", at, 1, 0, 0, o, len(c), 0, 0, 0, 0) for at, o, c in entries[:-1]
    ]
    rows.append(
        struct.pack("<IIQQQQIIQQ", entries[-1][0], 3, 0, 0, names_at, len(names), 0, 0, 0, 0)
    )
    return head + body + names + b"".join(rows)


@dataclass(frozen=True)
class TritonCase:
    """How a cache lies in memory, its queries, and the device that is stood in for."""

    fmt: str
    q_dtype: torch.dtype
    k_dim: int
    v_dim: int
    kv_heads: int
    group: int
    lengths: tuple[int, ...] | None
    room: int
    page_size: int | None
    tokens_first: bool
    apart: int
    """Elements between rows."""
    v_magnitude: float
    processor: Processor
    seed: int
    window: int | None = None
    sink_tokens: int = 0

    @property
    def batch(self) -> int:
        return len(self.lengths) if self.lengths else 2

    def view(self) -> KVView:
        generator = torch.Generator().manual_seed(self.seed)
        tensors: dict[str, torch.Tensor] = {}
        sides = (("k", self.k_dim, 1.0), ("v", self.v_dim, self.v_magnitude))
        for name, dim, magnitude in sides:
            x = torch.randn(self.batch, self.kv_heads, self.room, dim, generator=generator)
            x *= magnitude * (
                1 + torch.rand(self.batch, self.kv_heads, self.room, 1, generator=generator)
            )
            tensors |= as_stored(name, x, self.fmt)
        tensors = {name: self._poisoned(x) for name, x in tensors.items()}
        if self.page_size is not None:
            return self.paged(tensors, generator)
        for name in ("k", "v"):
            tensors[name] = self._strided(tensors[name])
        cache: dict[str, Any] = {**tensors, "lengths": self.lengths}
        return KVView(format=self.fmt, window=self.window, sink_tokens=self.sink_tokens, **cache)

    def latents(self) -> KVView:
        """As `view`, of plain rows of which V is the first `v_dim` columns."""
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.batch, self.kv_heads, self.room, self.k_dim, generator=generator)
        rows = self._poisoned(x.to(DTYPES[self.fmt]))
        if self.page_size is None:
            rows = self._strided(rows)
            return KVView(rows, rows[..., : self.v_dim], self.fmt, lengths=self.lengths)
        view = self.paged({"k": rows, "v": rows[..., : self.v_dim]}, generator)
        return replace(view, v=view.k[..., : self.v_dim])

    def query(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (self.batch, self.kv_heads * self.group, self.k_dim)
        q = torch.randn(*shape, generator=generator).to(self.q_dtype)
        if self.apart:  # heads that do not touch
            q = torch.cat([q, torch.full_like(q, float("nan"))], dim=1)[:, : shape[1]]
        return q

    def _poisoned(self, x: torch.Tensor) -> torch.Tensor:
        for i, n in enumerate(self.lengths or ()):
            x[i, :, n:] = filling(x.dtype)
        return x

    def _strided(self, x: torch.Tensor) -> torch.Tensor:
        if self.tokens_first:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        if self.apart:
            wide = torch.full((*x.shape[:3], x.shape[3] + self.apart), 127, dtype=x.dtype)
            wide[..., : x.shape[3]] = x
            x = wide[..., : x.shape[3]]
        return x

    def paged(self, tensors: dict[str, torch.Tensor], generator: torch.Generator) -> KVView:
        """The same rows in pages at random, and entries of the table that are never read."""
        size = self.page_size or 1
        per_row = -(-self.room // size)
        used = self.batch * per_row
        order = torch.randperm(used + 2, generator=generator)
        table = order[:used].view(self.batch, per_row).to(torch.int32)
        pools: dict[str, Any] = {
            name: self._pool(x, table, used + 2) for name, x in tensors.items()
        }
        for i, n in enumerate(self.lengths or ()):
            table[i, -(-n // size) :] = int(order[-1])  # an unused page: all NaN
        lengths = self.lengths or (self.room,) * self.batch
        return KVView(
            format=self.fmt, lengths=lengths, layout="paged", page_size=size, block_table=table,
            window=self.window, sink_tokens=self.sink_tokens, **pools,
        )  # fmt: skip

    def _pool(self, x: torch.Tensor, table: torch.Tensor, pages: int) -> torch.Tensor:
        size = self.page_size or 1
        pool = torch.full((pages, x.shape[1], size, *x.shape[3:]), filling(x.dtype)).to(x.dtype)
        for b in range(table.shape[0]):
            for i, page in enumerate(table[b].tolist()):
                rows = x[b, :, i * size : (i + 1) * size]
                pool[page, :, : rows.shape[1]] = rows
        return pool


def filling(dtype: torch.dtype) -> float:
    """What lies where no token is: NaN, or the largest that has no NaN."""
    return {torch.int8: 127, torch.uint8: 255}.get(dtype, float("nan"))


def one_case() -> TritonCase:
    """A ragged fp16 cache of two sequences, on a small H100."""
    return TritonCase(
        fmt="fp16", q_dtype=torch.float16, k_dim=64, v_dim=64, kv_heads=2, group=4,
        lengths=(200, 70), room=200, page_size=None, tokens_first=False, apart=0, v_magnitude=1.0,
        processor=Processor(6, Room(SHARED_BYTES[90])), seed=0,
    )  # fmt: skip


def one_latent_case() -> TritonCase:
    """A ragged cache of DeepSeek's latents, 20 query heads to them, chunks of several blocks."""
    return replace(
        one_case(), k_dim=576, v_dim=512, kv_heads=1, group=20, lengths=(131, 70), room=131,
        processor=Processor(1, Room(SHARED_BYTES[90])),
    )  # fmt: skip


@st.composite
def triton_cases(draw: st.DrawFn) -> TritonCase:
    fmt = draw(st.sampled_from(FORMATS))
    k_dim = draw(st.sampled_from([16, 64, 80, 128, 192, 256]))
    v_dim = draw(st.sampled_from([k_dim, k_dim, 32, 112]))
    if (base := stored_as(fmt).base) in PACKED_DIMS:
        k_dim, v_dim = draw(st.sampled_from(PACKED_DIMS[base]))
    room = draw(st.integers(1, 200) | st.integers(200, 700))
    length = st.integers(1, room)
    window = draw(st.none() | st.none() | st.integers(1, room + 9))
    capability = draw(st.sampled_from(sorted(SHARED_BYTES)))
    backend = draw(st.sampled_from(["cuda", "cuda", "hip"]))
    return TritonCase(
        fmt=fmt,
        q_dtype=DTYPES[fmt] if fmt in DTYPES else draw(st.sampled_from([torch.float16, torch.bfloat16])),
        k_dim=k_dim,
        v_dim=v_dim,
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.integers(1, 8) | st.sampled_from([16, 17, 40])),
        lengths=draw(st.none() | st.lists(length, min_size=1, max_size=3).map(tuple)),
        room=room,
        page_size=draw(st.none() | st.sampled_from([1, 5, 16, 24, 32, 64, 256])),
        tokens_first=draw(st.booleans()),
        apart=draw(st.sampled_from([0, 0, 16])),
        v_magnitude=draw(st.sampled_from([1.0, 1.0, 1e-4])),
        processor=Processor(draw(st.integers(1, 12)), Room(SHARED_BYTES[capability], backend)),
        seed=draw(st.integers(0, 99)),
        window=window,
        sink_tokens=0 if window is None else draw(st.sampled_from([0, 1, 4, 70])),
    )  # fmt: skip
