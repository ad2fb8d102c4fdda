"""A made-up run of one model in every format, contiguous and in pages: times said one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvgauge.schema import BackendRef, CacheRef, Prediction, Record, Run, Timing, Trust
from runs_for_tests import MODELS, make_run

BYTES_PER_TOKEN = {"fp16": 8192, "int8": 4160, "int4": 2304, "int2": 1280, "fp8_e4m3": 4096}
"""K and V of 8 heads of 128 in 2 layers, written out: int8 has 2 bytes a head beside its 128."""
DEPTH = 8192
Times = Mapping[tuple[str, str, int | None], float]
"""(backend, format, page size) -> milliseconds."""
TIMES: Times = {
    ("cpu", "fp16", None): 20.0,
    ("cpu", "fp16", 16): 22.0,
    ("cpu", "int8", None): 12.5,
    ("cpu-q8", "int8", None): 10.0,
    ("cpu", "int8", 16): 15.0,
    ("cpu", "int4", None): 20.2,
    ("cpu", "int2", None): 30.0,
    ("cpu", "int2", 16): 33.0,
    ("cpu", "fp8_e4m3", None): 16.0,
}


def formats_run(times: Times = TIMES, half_width: float = 0.02, *, flagged: bool = False) -> Run:
    """Records of scope `attention` alone; intervals of the median plus and minus `half_width`."""
    base = make_run(models=MODELS[1:2], depths=(DEPTH,))
    model = next(r for r in base.records if r.scope == "attention")
    records = tuple(_record(model, *key, ms / 1e3, half_width) for key, ms in times.items())
    if flagged:
        records = tuple(replace(r, trust=Trust(False, ("cpu_shared",))) for r in records)
    cells = tuple(record.cell_id for record in records)
    return Run(replace(base.manifest, cells=cells), records)


def _record(
    model: Record, backend: str, fmt: str, page: int | None, time_s: float, half_width: float
) -> Record:
    held = BYTES_PER_TOKEN[fmt] * DEPTH
    low, high = time_s * (1 - half_width), time_s * (1 + half_width)
    timing = Timing(time_s, low, high, 6, 0.01, (time_s,) * 6, "converged")
    assert model.measured
    return replace(
        model,
        cell_id=f"{backend}-{fmt}-{page}",
        cache=CacheRef(fmt, "paged" if page else "contiguous", page, "all"),
        backend=BackendRef(backend, "0.1.0", "kvgauge::cpu_decode"),
        predicted=Prediction(held, held, 4 * 8192 * DEPTH, time_s / 2, "memory", "probe"),
        measured=replace(model.measured, kv_bytes=held, time_s=timing, bytes_per_s=held / time_s),
    )
