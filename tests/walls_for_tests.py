"""Memory behind which nothing can be read."""

from __future__ import annotations

import ctypes
import mmap

import torch


def before_a_wall(x: torch.Tensor) -> torch.Tensor:
    """A copy whose last element lies before memory that cannot be read: whoever reads on dies."""
    page, size = mmap.PAGESIZE, x.numel() * x.element_size()
    room = -(-size // page) * page
    held = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + room), page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = torch.frombuffer(held, dtype=torch.uint8, count=size, offset=room - size)
    copy.copy_(x.contiguous().view(-1).view(torch.uint8))
    return copy.view(x.dtype).view(x.shape)
