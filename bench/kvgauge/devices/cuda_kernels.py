"""Which kernels ran on the GPU and for how long: CUPTI's activity records, by torch's profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from kvgauge.devices import cuda_calls


def kernel_seconds(step: Callable[[], object], device: torch.device) -> dict[str, float] | None:
    """Seconds of each kernel, copy and fill of one call, by name; None where CUPTI is not there."""
    if ProfilerActivity.CUDA not in supported_activities():
        return None
    step()
    cuda_calls.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        cuda_calls.synchronize(device)
    seconds: dict[str, float] = defaultdict(float)
    for event in seen.events() or ():
        # A range that the program named lies over its kernels: it would count them twice.
        if event.device_type.name == "CUDA" and not event.is_user_annotation:
            seconds[event.name] += event.time_range.elapsed_us() / 1e6
    # A profiler that saw nothing (no permission, another one at work) knows nothing.
    return dict(seconds) or None
