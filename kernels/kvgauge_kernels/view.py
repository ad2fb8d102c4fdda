"""KVView: what a kernel sees of one layer's cache.

Tensors and nothing of the harness: no model names, no formula, no run folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvgauge_kernels.stored import PLAIN_DTYPE, stored_as


@dataclass(frozen=True, slots=True)
class KVView:
    """One layer's cache.

    k: `[batch, kv_heads, tokens, k_dim]`, v: `[batch, kv_heads, tokens, v_dim]`, both of the
    storage dtype of `format`; any strides with the last dimension contiguous. Of formats with packed
    codes (`stored.py`) the last dimension is bytes, `k_dim * bits / 8`. Where a format has scales,
    k_scale and v_scale are fp16: `[batch, kv_heads, tokens]`, an element being `stored * scale`; in
    formats of groups `[batch, kv_heads, tokens, groups]`, and k_zero and v_zero are like them, an
    element being `code * scale + zero`; where K is per channel (kivi4, kivi2) k_scale and k_zero are
    `[batch, kv_heads, token groups, k_dim]`. `lengths` says how many tokens of each sequence are valid;
    None means all. What lies past a sequence's length is never part of a result, but must be finite
    where a backend does not say otherwise.

    `window`: a step sees the last so many valid tokens only, and besides them the first
    `sink_tokens` (StreamingLLM, arXiv 2309.17453); None means all.

    Where layout is "paged", k and v are pools of pages, `[pages, kv_heads, page_size, dim]`, the
    scales and zeros likewise `[pages, kv_heads, page_size, ...]`, and row b of block_table (int32,
    `[batch, max_pages]`) names the pages of sequence b in their order; entries past its last page are
    never read.
    Raises ValueError where the tensors do not fit together.
    """

    k: torch.Tensor
    v: torch.Tensor
    format: str
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None
    lengths: tuple[int, ...] | None = None
    layout: str = "contiguous"
    page_size: int | None = None
    block_table: torch.Tensor | None = None
    k_zero: torch.Tensor | None = None
    v_zero: torch.Tensor | None = None
    window: int | None = None
    sink_tokens: int = 0

    def __post_init__(self) -> None:
        if self.k.dim() != 4 or self.v.dim() != 4:
            raise ValueError("k and v must be [batch, kv_heads, tokens, head_dim]")
        if self.k.shape[:3] != self.v.shape[:3]:
            raise ValueError(
                f"k {list(self.k.shape)} and v {list(self.v.shape)} differ in batch, heads or tokens"
            )
        if 0 in (*self.k.shape[2:], self.v.shape[3]):
            raise ValueError(
                f"no tokens or no dims: k {list(self.k.shape)}, v {list(self.v.shape)}"
            )
        if self.k.dtype != self.v.dtype or self.k.device != self.v.device:
            raise ValueError(
                f"k is {self.k.dtype} on {self.k.device}, v {self.v.dtype} on {self.v.device}"
            )
        if self.k.dtype != stored_as(self.format).dtype:
            raise ValueError(f"format {self.format} with tensors of {self.k.dtype}")
        for name, tensor in (("k", self.k), ("v", self.v)):
            if tensor.shape[3] > 1 and tensor.stride(3) != 1:
                raise ValueError(f"{name}'s last dimension must be contiguous: {tensor.stride()}")
        self._check_scales()
        self._check_layout()
        self._check_lengths()

    def _check_scales(self) -> None:
        kind = stored_as(self.format)
        tokens, grouped = self.k.shape[2], kind.group is not None
        of_k = kind.k_sides(tokens, self.k_dim)
        of_v = (tokens, kind.groups(self.v_dim)) if grouped else (tokens,)
        sides = (
            ("k_scale", self.k_scale, of_k, kind.scaled),
            ("v_scale", self.v_scale, of_v, kind.scaled),
            ("k_zero", self.k_zero, of_k, grouped),
            ("v_zero", self.v_zero, of_v, grouped),
        )
        for name, tensor, shape, needed in sides:
            what = "scales" if name.endswith("scale") else "zero points"
            wanted = [*self.k.shape[:2], *shape]
            if tensor is None and needed:
                raise ValueError(f"an {self.format} cache needs {name} ({what}, {wanted})")
            if tensor is not None and not needed:
                raise ValueError(f"a cache of format {self.format} has no {what}: {name} given")
            if tensor is not None and list(tensor.shape) != wanted:
                raise ValueError(f"{what} must be {wanted}, got {list(tensor.shape)}: {name}")
            if tensor is not None and tensor.device != self.k.device:
                raise ValueError(f"{name} is on {tensor.device}, k on {self.k.device}")

    def _check_layout(self) -> None:
        table = self.block_table
        if self.layout not in ("contiguous", "paged"):
            raise ValueError(f"layout {self.layout!r}: contiguous or paged")
        if self.layout == "contiguous":
            if table is not None or self.page_size is not None:
                raise ValueError("a contiguous cache has no block table and no page size")
            return
        if table is None or table.dim() != 2 or table.dtype != torch.int32:
            raise ValueError("a paged cache needs a block_table, int32 [batch, max_pages]")
        if table.device != self.k.device:
            raise ValueError(f"block_table is on {table.device}, k on {self.k.device}")
        if self.page_size is None or self.page_size < 1 or self.page_size != self.k.shape[2]:
            raise ValueError(f"page_size {self.page_size}, and pages of {self.k.shape[2]} tokens")
        together = stored_as(self.format).k_tokens
        if self.page_size % together:
            raise ValueError(
                f"page_size {self.page_size}: {self.format} needs pages of whole groups, "
                f"multiples of {together} tokens"
            )

    def _check_lengths(self) -> None:
        whole: list[object] = [] if self.lengths is None else list(self.lengths)
        whole += [self.sink_tokens] if self.window is None else [self.window, self.sink_tokens]
        if not all(isinstance(n, int) and n < 2**63 for n in whole):
            raise ValueError(f"lengths, a window and sinks are whole numbers below 2^63: {whole}")
        if self.lengths is not None:
            if len(self.lengths) != self.batch:
                raise ValueError(f"{len(self.lengths)} lengths for a batch of {self.batch}")
            if not all(1 <= n <= self.tokens for n in self.lengths):
                raise ValueError(f"lengths must be between 1 and {self.tokens}: {self.lengths}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"a window of {self.window} tokens: at least 1")
        if self.sink_tokens < 0 or (self.sink_tokens and self.window is None):
            raise ValueError(f"{self.sink_tokens} sink tokens: at least 0, and beside a window")

    @property
    def batch(self) -> int:
        """Sequences."""
        return self.k.shape[0] if self.block_table is None else self.block_table.shape[0]

    @property
    def kv_heads(self) -> int:
        """Heads of K and V."""
        return self.k.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that there is room for in a sequence."""
        room = self.k.shape[2]
        return room if self.block_table is None else room * self.block_table.shape[1]

    @property
    def k_dim(self) -> int:
        """Elements of one row of K."""
        return self.k.shape[3] * stored_as(self.format).per_byte

    @property
    def v_dim(self) -> int:
        """Elements of one row of V."""
        return self.v.shape[3] * stored_as(self.format).per_byte

    @property
    def ragged(self) -> bool:
        """Whether sequences differ in length, or are shorter than the room."""
        return self.lengths is not None and any(n != self.tokens for n in self.lengths)

    def length(self, sequence: int) -> int:
        """Valid tokens of one sequence."""
        return self.tokens if self.lengths is None else self.lengths[sequence]

    def check(self, q: torch.Tensor) -> None:
        """Raise ValueError where q, as `decode` or `prefill` take it, is not of this cache."""
        if q.dim() not in (3, 4) or q.shape[0] != self.batch or q.shape[-1] != self.k_dim:
            raise ValueError(
                f"q {list(q.shape)} must be [{self.batch}, q_heads, {self.k_dim}], with q_tokens "
                "before the last dimension in a prefill"
            )
        if q.device != self.k.device:
            raise ValueError(f"q is on {q.device}, k on {self.k.device}")
        if not self.kv_heads or q.shape[1] % self.kv_heads:
            raise ValueError(f"{q.shape[1]} query heads over {self.kv_heads} K/V heads")
        shortest = min(self.lengths or (self.tokens,))
        if q.dim() == 4 and q.shape[2] > shortest:
            raise ValueError(f"{q.shape[2]} query tokens for a sequence of {shortest} tokens")

    def group(self, q: torch.Tensor) -> int:
        """Query heads to one K/V head; raises as `check`."""
        self.check(q)
        return q.shape[1] // self.kv_heads

    def narrowed(self, rows: slice, tokens: int) -> KVView:
        """Those sequences, cut to the first `tokens`, all of them valid; nothing is copied.

        Of a contiguous cache; raises ValueError for a paged one, of which see `gathered`.
        """
        if self.layout != "contiguous":
            raise ValueError("a paged cache cannot be cut without a copy")
        cut: dict[str, Any] = {
            name: x[rows, :, : -(-tokens // self.tokens_to(name))]
            for name, x in self.tensors().items()
        }
        return replace(self, **cut, lengths=None)

    def tensors(self) -> dict[str, torch.Tensor]:
        """K, V and what belongs to them, by the names of this view's fields; not the block table."""
        names = ("k", "v", "k_scale", "v_scale", "k_zero", "v_zero")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def tokens_to(self, name: str) -> int:
        """Tokens that share an entry of that tensor: more than one of K's scales per channel."""
        return stored_as(self.format).k_tokens if name in ("k_scale", "k_zero") else 1

    @property
    def shares_rows(self) -> bool:
        """Whether V lies in K's rows, as MLA's latents do."""
        same_place = self.v.data_ptr() == self.k.data_ptr()
        return same_place and self.v.stride() == self.k.stride()

    def stored_tensors(self) -> dict[str, torch.Tensor]:
        """As `tensors`, without V's where V lies in K's rows: whoever writes does it once."""
        found = self.tensors()
        return {n: x for n, x in found.items() if not (self.shares_rows and n.startswith("v"))}

    def rows(self, name: str, sequence: int, heads: slice) -> torch.Tensor:
        """The valid rows of one of `tensors`, by name: `[heads, tokens, ...]`, of one sequence.

        A part of it where the cache is contiguous, a copy where it is paged.
        """
        pool, n = self.tensors()[name], self.length(sequence)
        own = -(-n // self.tokens_to(name))
        if self.block_table is None or self.page_size is None:
            return pool[sequence, heads, :own]
        pages = self.block_table[sequence, : -(-n // self.page_size)].long()
        return pool[:, heads][pages].transpose(0, 1).flatten(1, 2)[:, :own]

    def gathered(self, sequence: int) -> KVView:
        """One sequence as a contiguous cache of its valid tokens, copied where this one is paged."""
        own: dict[str, Any] = {
            name: self.rows(name, sequence, slice(None)).unsqueeze(0) for name in self.tensors()
        }
        whole: dict[str, Any] = {
            "lengths": None,
            "layout": "contiguous",
            "page_size": None,
            "block_table": None,
        }
        return replace(self, **own, **whole)

    def dense(self) -> Iterator[tuple[slice, KVView]]:
        """The cache in parts without invalid tokens, each with its rows of the batch.

        One part where all sequences are equally long, else one a sequence; nothing is copied.
        """
        if not self.ragged:
            yield slice(0, self.batch), self
        elif len(set(self.lengths or ())) == 1:
            yield slice(0, self.batch), self.narrowed(slice(0, self.batch), self.length(0))
        else:
            for i in range(self.batch):
                yield slice(i, i + 1), self.narrowed(slice(i, i + 1), self.length(i))

    def visible(self, q_tokens: int) -> torch.Tensor:
        """Which tokens the last q_tokens tokens see, windows aside: bool `[batch, 1, q_tokens, tokens]`.

        The first dimension is 1 where all sequences are equally long.
        """
        lengths = sorted(set(self.lengths or (self.tokens,)))
        ends = torch.tensor(lengths if len(lengths) == 1 else self.lengths, device=self.k.device)
        last_seen = ends[:, None] - q_tokens + torch.arange(q_tokens, device=self.k.device)
        positions = torch.arange(self.tokens, device=self.k.device)
        return (positions <= last_seen[..., None]).unsqueeze(1)

    def refusal(
        self,
        q_dtype: torch.dtype,
        formats: Collection[str],
        layouts: Collection[str] = ("contiguous",),
        *,
        windows: bool = False,
    ) -> str | None:
        """Why a kernel of those formats and layouts cannot read this; None if it can.

        A format in groups is in `formats` by its base name; `windows` says whether it reads those.
        """
        if self.layout not in layouts:
            return f"layout {self.layout!r}: it reads contiguous caches only"
        if stored_as(self.format).base not in formats:
            return f"format {self.format}: it reads {', '.join(sorted(formats))}"
        if PLAIN_DTYPE.get(self.format, q_dtype) != q_dtype:
            return f"a cache of {_short(self.k.dtype)} with queries of {_short(q_dtype)}"
        if self.window is not None and not windows:
            return "a sliding window: it reads every token"
        return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
