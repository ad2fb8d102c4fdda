"""What happens to a cache between steps: tokens appended, tokens kept and the rest dropped, pages copied.

Each moves bytes and computes nothing but the quantization of an appended token. `by` says who does it:
"torch" by indexed copies, on any device, or "triton" by this project's kernels for GPUs, which leave the
bytes that torch leaves on a CPU and, for `keep` and `copy_pages`, take no memory beside the cache. What
`by` cannot do it refuses: no other way is taken instead. All tensors of a view are treated alike. Positions
are those in a sequence, not in memory; they are checked on the host, which waits for the device to hear
them.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch

from kvgauge_kernels.quantize import Rows, quantize
from kvgauge_kernels.stored import stored_as
from kvgauge_kernels.triton import cache
from kvgauge_kernels.triton.backend import TritonBackend
from kvgauge_kernels.view import KVView


def append(view: KVView, k: torch.Tensor, v: torch.Tensor, by: str = "torch") -> KVView:
    """Quantize one more token of each sequence into the room behind its last; nothing is allocated.

    k: `[batch, kv_heads, k_dim]`, v: `[batch, kv_heads, v_dim]` floats; the view must have `lengths`.
    Of MLA's latents v is the first v_dim elements of k. Returns the view with each length one longer.
    Raises ValueError where there is no room, for what is not the cache's, as `by` cannot, and where K is per
    channel: its scales are those of a group of tokens, which are quantized together (`quantize_k`).
    """
    _of_single_tokens(view, "append")
    kernels = _by_triton(by, view)
    if view.lengths is None or max(view.lengths) >= view.tokens:
        raise ValueError(f"no room for a token more in {view.tokens}: lengths {view.lengths}")
    for name, rows, dim in (("k", k, view.k_dim), ("v", v, view.v_dim)):
        if list(rows.shape) != [view.batch, view.kv_heads, dim]:
            raise ValueError(
                f"{name} must be {[view.batch, view.kv_heads, dim]}: {list(rows.shape)}"
            )
    if view.shares_rows and not torch.equal(k[..., : view.v_dim], v):
        raise ValueError(f"v must be the first {view.v_dim} elements of k, in whose rows it lies")
    longer = replace(view, lengths=tuple(n + 1 for n in view.lengths))
    outer, inside = _written(view, torch.tensor(view.lengths, device=view.k.device)[:, None])
    if kernels is not None:
        if (reason := kernels.append_refusal(view)) is not None:
            raise ValueError(f"append by triton: {reason}")
        kernels.append_rows(view, k.to(view.k.device), v.to(view.k.device))
        return longer
    new = {**_named("k", quantize(k, view.format)), **_named("v", quantize(v, view.format))}
    for name, tensor in view.stored_tensors().items():
        # An index on both sides of a slice comes first: [batch, kv_heads, ...].
        tensor[outer[:, 0], :, inside[:, 0]] = new[name].to(tensor.device)
    return longer


def keep(view: KVView, kept: torch.Tensor, by: str = "torch") -> KVView:
    """Eviction: move the tokens that stay to the front, in place; returns the shorter view.

    kept: int64 `[batch, n]`, the positions that stay, rising in each row. K/V heads keep the same
    tokens. Raises ValueError for positions that do not rise or are not there, where sequences share the
    pages that would be written, where K is per channel, and as `by` cannot.
    """
    _of_single_tokens(view, "keep")
    kernels = _by_triton(by, view)
    lengths = torch.tensor([view.length(b) for b in range(view.batch)], device=kept.device)
    _whole_numbers("kept", kept)
    if kept.dim() != 2 or kept.shape[0] != view.batch or not kept.shape[1]:
        raise ValueError(f"kept must be [{view.batch}, at least 1]: {list(kept.shape)}")
    if bool((kept[:, 1:] <= kept[:, :-1]).any() or (kept[:, 0] < 0).any()):
        raise ValueError("the positions that stay must rise, from 0 on")
    if bool((kept[:, -1] >= lengths).any()):
        raise ValueError(f"a position that stays is past the end: lengths {lengths.tolist()}")
    n = kept.shape[1]
    shorter = replace(view, lengths=(n,) * view.batch)
    front = torch.arange(n, device=kept.device).expand(view.batch, n)
    outer_to, inside_to = _written(view, front)
    if kernels is not None:
        if (reason := kernels.keep_refusal()) is not None:
            raise ValueError(f"keep by triton: {reason}")
        kernels.keep_tokens(view, kept)
        return shorter
    outer_from, inside_from = _places(view, kept)
    for tensor in view.stored_tensors().values():
        tensor[outer_to, :, inside_to] = tensor[outer_from, :, inside_from]
    return shorter


def copy_pages(view: KVView, source: torch.Tensor, target: torch.Tensor, by: str = "torch") -> None:
    """Copy whole pages of a paged cache, scales and zeros with them: int64 page numbers `[n]` each.

    What a fork needs of the page that it is about to write into. Raises ValueError for another layout,
    where a page is copied onto twice, and as `by` cannot: triton copies all pages at once, and none that
    is copied onto too.
    """
    kernels = _by_triton(by, view)
    if view.layout != "paged":
        raise ValueError("only a paged cache has pages")
    for name, pages in (("source", source), ("target", target)):
        _whole_numbers(name, pages)
        if pages.dim() != 1 or (pages.numel() and not _all_pages(view, pages)):
            raise ValueError(f"{name} must be [n] pages below {view.k.shape[0]}: {pages.tolist()}")
    if source.shape != target.shape or len(set(target.tolist())) != target.numel():
        raise ValueError("as many pages to copy as to copy onto, each of those once")
    if kernels is not None:
        kernels.copy_pages(view, source, target)
        return
    for tensor in view.stored_tensors().values():
        tensor[target] = tensor[source]


def _of_single_tokens(view: KVView, what: str) -> None:
    together = stored_as(view.format).k_tokens
    if together > 1:
        raise ValueError(
            f"{what}: {view.format} has K per channel, {together} tokens to a scale, and no token of "
            "them can come or go alone"
        )


def _by_triton(by: str, view: KVView) -> ModuleType | None:
    """The launches of the kernels, None for torch's copies; raises ValueError where those cannot run."""
    if by == "torch":
        return None
    if by != "triton":
        raise ValueError(f"by {by!r}: torch or triton")
    reason = TritonBackend().available(view.k.device)
    if reason is not None:
        raise ValueError(f"by triton: {reason}")
    return cache


def _named(name: str, rows: Rows) -> dict[str, torch.Tensor]:
    sides = {name: rows.codes, f"{name}_scale": rows.scale, f"{name}_zero": rows.zero}
    return {key: side for key, side in sides.items() if side is not None}


def _whole_numbers(name: str, numbers: torch.Tensor) -> None:
    if numbers.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name} must be int64 or int32 positions, not {numbers.dtype}")


def _all_pages(view: KVView, pages: torch.Tensor) -> bool:
    return bool(((pages >= 0) & (pages < view.k.shape[0])).all())


def _written(view: KVView, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`_places` that may be written: pages that are there, and none of two sequences or heads."""
    outer, inside = _places(view, positions)
    tensors = view.stored_tensors().values()
    shared = any(
        n > 1 and s == 0 for x in tensors for n, s in zip(x.shape, x.stride(), strict=True)
    )
    if view.block_table is not None:
        pages = [set(row) for row in outer.tolist()]
        used = set().union(*pages)
        missing = used.difference(range(view.k.shape[0]))
        if missing:
            raise ValueError(f"a page that would be written is not there: {sorted(missing)}")
        shared |= len(used) < sum(len(each) for each in pages)
    if shared:
        raise ValueError(
            "two sequences or heads would write the same place: copy what they share first"
        )
    return outer, inside


def _places(view: KVView, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of positions `[batch, n]`: the sequence or page, and the token's place in it."""
    rows = torch.arange(view.batch, device=positions.device)[:, None].expand_as(positions)
    if view.block_table is None or view.page_size is None:
        return rows, positions
    pages = view.block_table.long()[rows, positions // view.page_size]
    return pages, positions % view.page_size
