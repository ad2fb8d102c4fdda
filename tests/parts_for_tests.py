"""Caches cut into parts and put together again."""

from __future__ import annotations

from dataclasses import replace

import torch

from kvgauge_kernels import KVView


def cut(view: KVView, first: int, last: int) -> KVView:
    """Those tokens of each sequence of a contiguous cache."""
    return replace(view, **{n: x[:, :, first:last] for n, x in view.tensors().items()})  # type: ignore[arg-type]


def joined(prefix: KVView, forks: KVView) -> KVView:
    """Each fork as a whole sequence."""
    batch = forks.batch
    both = {
        n: torch.cat([x.expand(batch, *x.shape[1:]), getattr(forks, n)], dim=2)
        for n, x in prefix.tensors().items()
    }
    return replace(forks, **both)  # type: ignore[arg-type]
