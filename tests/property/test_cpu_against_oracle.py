"""The native kernels, at every level, on every layout, against the oracle in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_for_tests import DTYPES, FLOAT8, as_stored, bits_and_group, error
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.cpu.native_module import native

if native() is None:
    pytest.skip("the native kernels are not built", allow_module_level=True)
NATIVE = native()
LEVELS = ("portable", "avx2", "avx512")
BEST = LEVELS.index(NATIVE.best_level()) if NATIVE else 0
# Beside the rounding of the result to q's dtype.
OWN_ERROR = {"plain": 1e-5, "cpu": 1e-3, "cpu-q8": 3e-2}
# So small that elements, or the scales of them, are denormal.
SMALL = {"fp16": 2.0**-20, "int8": 2.0**-16, "int4": 2.0**-16, "int2": 2.0**-16,
         "kivi4": 2.0**-16, "kivi2": 2.0**-16, "fp8_e4m3": 2.0**-8, "fp8_e5m2": 2.0**-16}  # fmt: skip
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
    window: tuple[int | None, int]
    seed: int

    @property
    def integers(self) -> bool:
        return self.fmt.startswith(("int", "kivi"))

    def view(self) -> KVView:
        generator = torch.Generator().manual_seed(self.seed)
        room = max(self.lengths) + self.gap
        rows = [self._rows(room, dim, generator) for dim in (self.k_dim, self.v_dim)]
        sides: dict[str, Any] = {}
        for name, x in zip("kv", rows, strict=True):
            # Where no token is the codes are the largest there are, and all else is NaN.
            sides |= {n: self._poisoned(n, y) for n, y in as_stored(name, x, self.fmt).items()}
        window: dict[str, Any] = {"window": self.window[0], "sink_tokens": self.window[1]}
        if self.page_size is None:
            sides |= {n: self._strided(x) for n, x in sides.items() if x.dim() == 4}
            return KVView(format=self.fmt, lengths=self.lengths, **sides, **window)
        return replace(self._paged(sides, generator), **window)

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
            x[..., 1::2, :] *= SMALL.get(self.fmt.partition("-")[0], 1e-40)
        return x

    def _together(self, name: str) -> int:
        """Tokens to an entry of that tensor."""
        by_channel = self.fmt.startswith("kivi") and name in ("k_scale", "k_zero")
        return bits_and_group(self.fmt)[1] if by_channel else 1

    def _poisoned(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for i, n in enumerate(self.lengths):
            x[i, :, -(-n // self._together(name)) :] = nothing(x.dtype)
        return x

    def _strided(self, x: torch.Tensor) -> torch.Tensor:
        if self.tokens_first:
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        if self.gap % 2:  # rows that do not touch, and start at odd places
            wide = torch.full((*x.shape[:3], x.shape[3] + 3), nothing(x.dtype), dtype=x.dtype)
            wide[..., 1:-2] = x
            x = wide[..., 1:-2]
        return x

    def _paged(self, sides: dict[str, torch.Tensor], generator: torch.Generator) -> KVView:
        size = self.page_size or 1
        per_row = -(-max(self.lengths) // size) + 1
        used = len(self.lengths) * per_row
        order = torch.randperm(used + 2, generator=generator)
        table = order[:used].view(len(self.lengths), per_row).to(torch.int32)
        pools: dict[str, Any] = {
            name: self._pool(name, x, table, used + 2) for name, x in sides.items()
        }
        for i, n in enumerate(self.lengths):
            table[i, -(-n // size) :] = -12345  # never to be read
        return KVView(
            format=self.fmt,
            lengths=self.lengths,
            layout="paged",
            page_size=size,
            block_table=table,
            **pools,
        )

    def _pool(self, name: str, x: torch.Tensor, table: torch.Tensor, pages: int) -> torch.Tensor:
        together = self._together(name)
        size = (self.page_size or 1) // together
        shape = (pages, self.kv_heads, size, *x.shape[3:])
        pool = torch.full(shape, nothing(x.dtype), dtype=x.dtype)
        if self.tokens_first:
            pool = pool.transpose(1, 2).contiguous().transpose(1, 2)
        for i, length in enumerate(self.lengths):
            n = -(-length // together)
            for t in range(0, n, size):
                part = x[i, :, t : min(n, t + size)]
                pool[int(table[i, t // size]), :, : part.shape[1]] = part
        return pool


def nothing(dtype: torch.dtype) -> float:
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


FORMATS = (
    *DTYPES, *FLOAT8, "int8", "int4", "int2", "int4-g16", "int2-g16", "int4-g32", "int2-g32",
    "int4-g48", "int4-g128", "int2-g4096", "kivi4", "kivi2", "kivi4-g16", "kivi2-g64", "kivi4-g160",
)  # fmt: skip
windows = st.just((None, 0)) | st.tuples(st.integers(1, 200), st.integers(0, 90))
one_dim = st.sampled_from([16, 64, 80, 96, 112, 128, 192, 256])
dims = one_dim.map(lambda n: (n, n)) | st.tuples(one_dim, one_dim)


def page_sizes(fmt: str) -> list[int]:
    if not fmt.startswith("kivi"):
        return [1, 16, 64, 7, 129]
    group = bits_and_group(fmt)[1]
    return [group, 2 * group, 5 * group]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    fmt = draw(st.sampled_from(FORMATS))
    large = (
        st.just((576, 512))
        if "-g" not in fmt and fmt not in ("int4", "int2", "kivi4", "kivi2")
        else one_dim.map(lambda n: (n, n))
    )
    length = st.integers(1, 300) | st.integers(1, 10_000 if draw(st.integers(0, 9)) == 0 else 70)
    return Case(
        fmt,
        DTYPES.get(fmt) or draw(st.sampled_from(list(DTYPES.values()))),
        *draw(dims | large),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 16) | st.integers(17, 40)),
        tuple(draw(st.lists(length, min_size=1, max_size=3))),
        draw(st.none() | st.sampled_from(page_sizes(fmt))),
        draw(st.booleans()),
        draw(st.integers(0, 70)),
        draw(st.booleans()),
        draw(windows),
        draw(st.integers(0, 999)),
    )


@given(cases(), st.sampled_from(LEVELS[: BEST + 1]), st.integers(1, 3))
@settings(max_examples=500, deadline=None)
def test_decode(case: Case, level: str, threads: int) -> None:
    assert NATIVE is not None
    NATIVE.force_level(level)
    NATIVE.set_thread_count(threads)
    view, q = case.view(), case.query()
    expected = oracle_decode(q, view)
    for name in ("cpu", "cpu-q8"):
        backend = BACKENDS[name]
        able = backend.supports(view, q.dtype) is None
        if name == "cpu" or not case.integers or level != "avx2":
            assert able == (name == "cpu" or (case.integers and level == "avx512"))
        if not able:
            continue
        out = backend.decode(q, view)
        assert out.dtype == q.dtype
        limit = OWN_ERROR[name if case.integers else "plain"] + ROUNDING[q.dtype]
        assert error(out, expected) <= limit, (name, level)
