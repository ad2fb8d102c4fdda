"""The Python interface: `plan`, `load_run`, `compare`, with typed results.

Each imports what it needs when it is called: `plan` needs no torch and no numpy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kvgauge.formula.plan import Plan, make_plan
from kvgauge.shapes.resolve import resolve
from kvgauge.shapes.types import ModelShape
from kvgauge.traces.types import Trace

if TYPE_CHECKING:
    from kvgauge.schema import Run, Verdict


def plan(
    model: str | ModelShape,
    *,
    prompt: int = 0,
    think: int = 0,
    answer: int = 0,
    batch: int = 1,
    kv_format: str = "fp16",
    page_size: int | None = None,
    tp: int = 1,
    weight_format: str = "bf16",
) -> Plan:
    """What a trace of `prompt + think + answer` tokens costs, from arithmetic alone.

    `model` is a catalogue name, a config.json, a folder that holds one, a .gguf file, or a shape.
    Raises UserError for anything that is wrong with the arguments.
    """
    shape = model if isinstance(model, ModelShape) else resolve(model)
    return make_plan(
        shape,
        Trace(prompt, think, answer),
        kv_format_name=kv_format,
        weight_format=weight_format,
        batch=batch,
        page_size=page_size,
        tensor_parallel=tp,
    )


def load_run(folder: str | Path) -> Run:
    """Read a run folder; raises UserError, naming file, line and field, where it is not one."""
    from kvgauge.store.reader import load_run as load

    return load(folder)


def compare(run: Run, baseline: str | Path) -> tuple[Verdict, ...]:
    """One verdict a cell of `run` against a baseline file or folder of files.

    Raises NotComparable where there is no baseline.
    """
    from kvgauge.gate.baseline import load_baseline
    from kvgauge.gate.compare import compare as judge

    return judge(run, load_baseline(baseline))
