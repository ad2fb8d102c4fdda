"""Traces with a name: the lengths that people speak of."""

from __future__ import annotations

from kvgauge.traces.types import Trace

PRESETS: dict[str, Trace] = {
    "chat-500": Trace(prompt_tokens=200, answer_tokens=300),
    "think-1k": Trace(think_tokens=1_024),
    "think-2k": Trace(think_tokens=2_048),
    "think-8k": Trace(think_tokens=8_192),
    "think-32k": Trace(think_tokens=32_768),
    "think-50k": Trace(think_tokens=50_000),
    "think-128k": Trace(think_tokens=131_072),
}
