"""Huge pages for what a CPU reads at full speed.

A decode step reads each byte of a cache once, and with pages of 4 KiB waits for the look-up of one every few
dozen tokens: `results/cpu_roof.md` has both. A GPU's pages are large already.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

_HUGE_BYTES = 2 * 2**20
_MADV_HUGEPAGE = 14  # madvise(2)
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, the whole huge pages of its storage asked for where it is a CPU's and not written yet.

    Only those that lie wholly in it, so that no more memory is held. Linux gives them where
    `huge_pages()` says always or madvise and memory is in large pieces; elsewhere nothing happens.
    """
    if tensor.device.type != "cpu" or sys.platform != "linux":
        return tensor
    storage = tensor.untyped_storage()
    start = -(-storage.data_ptr() // _HUGE_BYTES) * _HUGE_BYTES
    end = (storage.data_ptr() + storage.nbytes()) // _HUGE_BYTES * _HUGE_BYTES
    if end > start:  # a kernel without huge pages answers with an error, which changes nothing
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)
    return tensor


def huge_pages() -> str | None:
    """When Linux gives transparent huge pages: `always`, `madvise` or `never`; None where it has none."""
    try:
        text = _SETTING.read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


@lru_cache
def _libc() -> Any:
    return ctypes.CDLL(None)
