"""Profiles: how much a run measures. Fixed here, never chosen by the clock."""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError
from kvgauge.schema import Criterion, Launch
from kvgauge.traces.presets import PRESETS
from kvgauge.traces.types import Trace


def _thinking(*depths: int) -> tuple[Trace, ...]:
    return tuple(Trace(think_tokens=n) for n in depths)


@dataclass(frozen=True, slots=True)
class Profile:
    """The defaults of a run; every list can be narrowed or replaced on the command line."""

    name: str
    models: tuple[str, ...]
    kv_formats: tuple[str, ...]
    batches: tuple[int, ...]
    layers_timed: int
    traces: dict[str, tuple[Trace, ...]]
    """By suite."""
    criterion: Criterion
    launches: tuple[Launch, ...] = ("stream", "graph")
    """How a GPU is given its work."""


_THREE = ("smollm2-135m", "llama-3.1-8b", "llama-3.1-70b")

PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            "smoke",
            models=_THREE,
            kv_formats=("fp16", "bf16", "int8"),
            batches=(1,),
            layers_timed=2,
            traces={
                "footprint": (PRESETS["chat-500"], *_thinking(1024, 2048, 8192)),
                "decode": (PRESETS["chat-500"], *_thinking(1024, 2048, 4096)),
                "model": _thinking(64, 128, 256, 384),
            },
            criterion=Criterion(0.03, min_samples=6, max_samples=25, budget_s=0.35),
            launches=("stream",),
        ),
        Profile(
            "standard",
            models=(*_THREE, "qwen3-32b"),
            kv_formats=("fp32", "fp16", "bf16", "int8", "int4"),
            batches=(1,),
            layers_timed=2,
            traces={
                "footprint": (
                    PRESETS["chat-500"],
                    PRESETS["think-2k"],
                    PRESETS["think-8k"],
                    PRESETS["think-32k"],
                    PRESETS["think-50k"],
                ),
                "decode": (
                    PRESETS["chat-500"],
                    PRESETS["think-2k"],
                    PRESETS["think-8k"],
                    PRESETS["think-32k"],
                    PRESETS["think-128k"],
                ),
                "model": _thinking(64, 256, 512, 1024, 2048, 4096),
            },
            criterion=Criterion(0.02, min_samples=7, max_samples=50, budget_s=2.0),
        ),
        Profile(
            "nightly",
            models=(*_THREE, "llama-3.2-1b", "qwen3-8b", "qwen3-32b", "mistral-7b-v0.1"),
            kv_formats=("fp32", "fp16", "bf16", "fp8_e4m3", "int8", "int4", "int2", "kivi2"),
            batches=(1, 4),
            layers_timed=2,
            traces={
                "footprint": tuple(PRESETS.values()),
                "decode": tuple(PRESETS.values()),
                "model": _thinking(64, 256, 512, 1024, 2048, 4096, 8000),
            },
            criterion=Criterion(0.01, min_samples=11, max_samples=100, budget_s=5.0),
        ),
    )
}


def profile(name: str) -> Profile:
    """The profile of that name; raises UserError with the known names."""
    if name not in PROFILES:
        raise UserError(f"unknown profile {name!r}: one of {', '.join(PROFILES)}")
    return PROFILES[name]
