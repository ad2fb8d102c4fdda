"""The native kernels, at every level, on every layout, against the oracle in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_for_tests import DTYPES, error, quantized
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.cpu.native_module import native

if native() is None:
    pytest.skip("the native kernels are not built", allow_module_level=True)
NATIVE = native()
LEVELS = ("portable", "avx2", "avx512")
BEST = LEVELS.index(NATIVE.best_level()) if NATIVE else 0
# Beside the rounding of the result to q's dtype.
OWN_ERROR = {"plain": 1e-5, "cpu": 1e-3, "cpu-q8": 3e-2}
ROUNDING = {torch.float32: 0.0, torch.float16: 5e-4, torch.bfloat16: 4e-3}


@pytest.fixture(autouse=True, scope="module")
def as_before() -> Iterator[None]:
    assert NATIVE is not None
    level, of_torch = NATIVE.level(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(of_torch)
    NATIVE.set_thread_count(0)
    NATIVE.force_level(level)


@dataclass(frozen=True)
class Case:
    """A cache of random numbers in a drawn layout, with NaN wherever no token is."""

    fmt: str
    q_dtype: torch.dtype
    k_dim: int
    v_dim: int
    kv_heads: int
    group: int
    lengths: tuple[int, ...]
    page_size: int | None
    tokens_first: bool
    gap: int
    denormals: bool
    seed: int

    def view(self) -> KVView:
        generator = torch.Generator().manual_seed(self.seed)
        room = max(self.lengths) + self.gap
        rows = [self._rows(room, dim, generator) for dim in (self.k_dim, self.v_dim)]
        k_scale: torch.Tensor | None = None
        v_scale: torch.Tensor | None = None
        if self.fmt == "int8":
            stored = [quantized(x) for x in rows]
            # Where no token is the elements are the largest there are, and the scales NaN.
            (k, k_scale), (v, v_scale) = ((self._poisoned(a), self._poisoned(b)) for a, b in stored)
        else:
            k, v = (self._poisoned(x.to(DTYPES[self.fmt])) for x in rows)
        if self.page_size is None:
            k, v = self._strided(k), self._strided(v)
            return KVView(k, v, self.fmt, k_scale, v_scale, self.lengths)
        return self._paged([k, v, k_scale, v_scale], generator)

    def query(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (len(self.lengths), self.kv_heads * self.group, self.k_dim)
        q = torch.randn(*shape, generator=generator).to(self.q_dtype)
        if self.tokens_first:  # q too in other strides
            q = torch.cat([q, torch.full_like(q, float("nan"))], dim=1)[:, : shape[1]]
        return q

    def _rows(self, room: int, dim: int, generator: torch.Generator) -> torch.Tensor:
        shape = (len(self.lengths), self.kv_heads, room, dim)
        x = torch.randn(*shape, generator=generator)
        if self.denormals:
            x[..., 1::2, :] *= {"fp16": 2.0**-20, "int8": 2.0**-16}.get(self.fmt, 1e-40)
        return x

    def _poisoned(self, x: torch.Tensor) -> torch.Tensor:
        for i, n in enumerate(self.lengths):
            x[i, :, n:] = 127 if x.dtype == torch.int8 else float("nan")
        return x

    def _strided(self, x: torch.Tensor) -> torch.Tensor:
        if self.tokens_first:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        if self.gap % 2:  # rows that do not touch, and start at odd places
            wide = torch.full((*x.shape[:3], x.shape[3] + 3), 127, dtype=x.dtype)
            wide[..., 1:-2] = x
            x = wide[..., 1:-2]
        return x

    def _paged(self, tensors: list[torch.Tensor | None], generator: torch.Generator) -> KVView:
        size = self.page_size or 1
        per_row = -(-max(self.lengths) // size) + 1
        used = len(self.lengths) * per_row
        order = torch.randperm(used + 2, generator=generator)
        table = order[:used].view(len(self.lengths), per_row).to(torch.int32)
        k, v, k_scale, v_scale = (self._pool(x, table, used + 2) for x in tensors)
        for i, n in enumerate(self.lengths):
            table[i, -(-n // size) :] = -12345  # never to be read
        assert k is not None
        assert v is not None
        return KVView(
            k, v, self.fmt, k_scale, v_scale, self.lengths, "paged", size, block_table=table
        )

    def _pool(self, x: torch.Tensor | None, table: torch.Tensor, pages: int) -> torch.Tensor | None:
        if x is None:
            return None
        size = self.page_size or 1
        nothing = 127 if x.dtype == torch.int8 else float("nan")
        pool = torch.full((pages, self.kv_heads, size, *x.shape[3:]), nothing, dtype=x.dtype)
        if self.tokens_first:
            pool = pool.transpose(1, 2).contiguous().transpose(1, 2)
        for i, n in enumerate(self.lengths):
            for t in range(0, n, size):
                part = x[i, :, t : min(n, t + size)]
                pool[int(table[i, t // size]), :, : part.shape[1]] = part
        return pool


one_dim = st.sampled_from([16, 64, 80, 96, 112, 128, 192, 256])
dims = one_dim.map(lambda n: (n, n)) | st.tuples(one_dim, one_dim)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    fmt = draw(st.sampled_from([*DTYPES, "int8"]))
    length = st.integers(1, 300) | st.integers(1, 10_000 if draw(st.integers(0, 9)) == 0 else 70)
    return Case(
        fmt,
        DTYPES.get(fmt) or draw(st.sampled_from(list(DTYPES.values()))),
        *draw(dims),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 16) | st.integers(17, 40)),
        tuple(draw(st.lists(length, min_size=1, max_size=3))),
        draw(st.none() | st.sampled_from([1, 16, 64, 7, 129])),
        draw(st.booleans()),
        draw(st.integers(0, 70)),
        draw(st.booleans()),
        draw(st.integers(0, 999)),
    )


@given(cases(), st.sampled_from(LEVELS[: BEST + 1]), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_decode(case: Case, level: str, threads: int) -> None:
    assert NATIVE is not None
    NATIVE.force_level(level)
    NATIVE.set_thread_count(threads)
    view, q = case.view(), case.query()
    expected = oracle_decode(q, view)
    eight = case.fmt == "int8" and level == "avx512"
    for name in ("cpu", "cpu-q8"):
        backend = BACKENDS[name]
        assert (backend.supports(view, q.dtype) is None) == (name == "cpu" or eight)
        if name == "cpu-q8" and not eight:
            continue
        out = backend.decode(q, view)
        assert out.dtype == q.dtype
        limit = OWN_ERROR[name if case.fmt == "int8" else "plain"] + ROUNDING[q.dtype]
        assert error(out, expected) <= limit, (name, level)
