"""Lengths that differ, as a small int32 tensor on the device, without the host waiting for it."""

from __future__ import annotations

from functools import lru_cache

import torch


def tokens_or_tensor(
    known: tuple[int, ...], device: torch.device
) -> tuple[int, torch.Tensor | None]:
    """One length for all is a number; only lengths that differ take a tensor, as `on_device`."""
    return known[0], on_device(known, device) if len(set(known)) > 1 else None


def on_device(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """int32 `[batch]` on `device`, kept for the next call with the same lengths.

    Raises ValueError where a CUDA graph is being captured and no call before had these lengths.
    """
    if device.type != "cuda":
        return torch.tensor(lengths, dtype=torch.int32, device=device)
    tensor, copied = _copied(lengths, device)
    if torch.cuda.is_current_stream_capturing():
        # The graph's replays read it for as long as there are any, whatever is kept here otherwise.
        _of_graphs[lengths, device] = tensor
    elif not copied.query():  # the copy may have been another stream's
        torch.cuda.current_stream(device).wait_event(copied)
    return tensor


_of_graphs: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}


@lru_cache(maxsize=256)
def _copied(lengths: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, torch.Event]:
    if torch.cuda.is_current_stream_capturing():
        # Each replay would copy from host memory that others have taken by then.
        raise ValueError("decode once with these lengths before a CUDA graph captures it")
    tensor = torch.tensor(lengths, dtype=torch.int32).pin_memory().to(device, non_blocking=True)
    return tensor, torch.cuda.current_stream(device).record_event()
