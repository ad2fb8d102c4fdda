"""Made-up runs for tests: plausible, deterministic, and measured on nothing.

Names say so (`made-up-...`), so that a report of one cannot be taken for a result.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvgauge.schema import (
    MANIFEST_SCHEMA,
    SCHEMA,
    BackendRef,
    CacheRef,
    Cell,
    DeviceRef,
    Manifest,
    Measurement,
    ModelRef,
    Prediction,
    Probe,
    Ratio,
    Record,
    Run,
    Status,
    Timing,
    TraceRef,
    Trust,
)

CPU = DeviceRef("cpu", "Made-up CPU @ 2 cores", None)
GPU = DeviceRef("cuda", "Made-up GPU 80GB", 0)
READ_BYTES_PER_S = {"cpu": 24e9, "cuda": 2.9e12}
FORMATS_BYTES = {"fp16": (2, 0), "bf16": (2, 0), "int8": (1, 2), "fp32": (4, 0)}
"""Bytes an element, and bytes of scale a row."""


@dataclass(frozen=True)
class MadeUpModel:
    """Enough of a model to make its bytes."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    weights: int

    def kv_bytes(self, tokens: int, fmt: str, layers: int) -> int:
        """K and V of every head and token."""
        element, scale = FORMATS_BYTES[fmt]
        return 2 * layers * tokens * self.kv_heads * (self.head_dim * element + scale)


MODELS = (
    MadeUpModel("made-up-135m", 30, 3, 64, 134_515_008),
    MadeUpModel("made-up-8b", 32, 8, 128, 8_030_261_248),
    MadeUpModel("made-up-70b", 80, 8, 128, 70_553_706_496),
)
# Times over the floor at the smallest depth: falls towards the second number as depth grows.
BACKENDS = {
    "eager": (6.0, 3.1, "aten::bmm"),
    "sdpa-math": (9.0, 6.4, "aten::_scaled_dot_product_attention_math"),
    "sdpa-flash": (2.2, 1.12, "aten::_scaled_dot_product_flash_attention_for_cpu"),
}
EAGER = BackendRef("eager", "2.13.0", "aten::bmm")
FLAGGED = (EAGER, "fp16")
INT8 = ("dequant+sdpa", 7.0, 4.8, "aten::_scaled_dot_product_flash_attention_for_cpu")
DEPTHS = (500, 1024, 2048, 4096)
MEMORY_DEPTHS = (500, 1024, 2048, 8192)


def make_run(
    device: DeviceRef = CPU,
    models: Sequence[MadeUpModel] = MODELS,
    depths: Sequence[int] = DEPTHS,
    seed: int = 0,
    run_id: str = "made-up-run",
) -> Run:
    """A whole run: footprints, decode times, a real model, one record of each kind of trouble."""
    maker = _Maker(device, random.Random(seed), run_id)
    records = [
        maker.footprint(model, fmt, tokens)
        for model in models
        for fmt in ("fp16", "bf16", "int8")
        for tokens in MEMORY_DEPTHS
    ]
    for model in models:
        for tokens in depths:
            records += [
                maker.decode(model, fmt, tokens, name, *BACKENDS[name])
                for fmt in ("fp16", "bf16")
                for name in BACKENDS
            ]
            records.append(maker.decode(model, "int8", tokens, *INT8))
    records += [
        maker.engine(models[0], tokens, name, over)
        for name, over in (("hf-sdpa", 1.6), ("hf-eager", 1.9))
        for tokens in (64, 128, 256, 384)
    ]
    return Run(manifest(device, records, run_id), tuple(records))


def troubled_run(device: DeviceRef = CPU) -> Run:
    """The same with a cell flagged, one of each bad status, one repeated, one never reached."""
    run = make_run(device)
    records = list(run.records)
    timed = [i for i, record in enumerate(records) if record.scope == "attention"]
    at = next(i for i in timed[35:] if (records[i].backend, records[i].cache.format) == FLAGGED)
    records[at] = replace(records[at], trust=Trust(False, ("wide_interval", "probe_changed")))
    troubles: tuple[tuple[Status, str, str], ...] = (
        ("invalid", "wrong_output", "error 0.31 against the float64 oracle, limit 0.01"),
        ("oom", "does_not_fit", "needs 16384000000 bytes, 6120000000 are available"),
        ("unsupported", "not_supported", "head_dim 96 is not a multiple of 64"),
        ("failed", "exception", "RuntimeError: made up"),
        ("skipped", "budget", "the budget of 60 s was spent after 61 s"),
    )
    for i, (status, code, reason) in zip(timed[::9], troubles, strict=False):
        records[i] = as_trouble(records[i], status, code, reason)
    records.append(replace(records[0], attempt=2))
    left_out = {"flash-attn": "no CUDA device", "flashinfer": "package is not installed"}
    cells = (*run.manifest.cells, "feedfacefeedface")
    changed = replace(run.manifest, left_out=left_out, cells=cells, status="incomplete")
    return Run(changed, tuple(records), torn_lines=1)


def empty_run(device: DeviceRef = CPU) -> Run:
    """A run in which every cell failed."""
    run = make_run(device, models=MODELS[:1], depths=(500,))
    records = tuple(as_trouble(r, "failed", "exception", "OSError: made up") for r in run.records)
    return Run(replace(run.manifest, status="incomplete"), records)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=https://example.invalid/x onerror=alert(1)>',
    '#read("/etc/passwd") #import "@preview/x:1.0.0" [a] $x^2$ \\ `b` *c* _d_ @e </svg>',
    "a|b\n\r\t\x00\x1b[31m\u202egnp.exe\ud800 | c",
    "{{ 7 * 7 }} {% raw %} ${x}",
    "N" * 100_000,
)
"""Strings that a report must show, if at all, as bounded text."""


def hostile_run() -> Run:
    """A run in which every free string is hostile, cell ids included."""
    run = troubled_run()
    names = {model.name: HOSTILE[i % len(HOSTILE)] for i, model in enumerate(MODELS)}
    device = DeviceRef("cpu", HOSTILE[2] + HOSTILE[0], None)
    return Run(
        replace(
            run.manifest,
            run_id=HOSTILE[0],
            command=HOSTILE,
            git_revision=HOSTILE[1],
            device=device,
            machine={HOSTILE[0]: {"nested": list(HOSTILE)}, HOSTILE[5]: HOSTILE[5], "n": None},
            versions={HOSTILE[2]: HOSTILE[3]},
            left_out=dict.fromkeys(HOSTILE, HOSTILE[0]),
            cells=(*run.manifest.cells, *HOSTILE),
        ),
        tuple(_hostile(record, names, device, i) for i, record in enumerate(run.records)),
    )


def _hostile(record: Record, names: dict[str, str], device: DeviceRef, i: int) -> Record:
    backend = record.backend
    return replace(
        record,
        cell_id=f"{record.cell_id} {HOSTILE[i % 5]}",
        reason=HOSTILE[1] if record.reason else None,
        reason_code=HOSTILE[3] if record.reason_code else None,
        model=replace(record.model, name=names[record.model.name], attention=HOSTILE[4]),
        backend=backend and BackendRef(HOSTILE[0] + backend.name, HOSTILE[1], HOSTILE[2]),
        device=device,
        trust=replace(record.trust, flags=tuple(HOSTILE[0] for _ in record.trust.flags)),
    )


def as_trouble(record: Record, status: Status, code: str, reason: str) -> Record:
    """The record as if its cell had ended badly: nothing measured."""
    return replace(
        record,
        status=status,
        reason_code=code,
        reason=reason,
        measured=None,
        probe=None,
        ratio=None,
        trust=Trust(False),
    )


def manifest(device: DeviceRef, records: Sequence[Record], run_id: str) -> Manifest:
    """The manifest of made-up records."""
    return Manifest(
        schema=MANIFEST_SCHEMA,
        run_id=run_id,
        profile="smoke",
        command=("kvgauge", "run", "--profile", "smoke"),
        seed=0,
        started_at="2001-01-01T00:00:00.000+00:00",
        finished_at="2001-01-01T00:07:31.000+00:00",
        status="complete",
        git_revision="0" * 40,
        git_dirty=False,
        device=device,
        machine={"cpu": "Made-up CPU", "cores": 2, "memory_bytes": 8_000_000_000},
        versions={"python": "3.11.0", "torch": "2.13.0", "kvgauge": "0.1.0"},
        left_out={},
        cells=tuple(record.cell_id for record in records),
    )


class _Maker:
    def __init__(self, device: DeviceRef, rng: random.Random, run_id: str) -> None:
        self.device, self.rng, self.run_id = device, rng, run_id
        self.read = READ_BYTES_PER_S[device.kind]

    def footprint(self, model: MadeUpModel, fmt: str, tokens: int) -> Record:
        kv_bytes = model.kv_bytes(tokens, fmt, model.layers)
        block = 4096 if self.device.kind == "cpu" else 2 * 2**20
        allocated = -(-kv_bytes // block) * block + block * self.rng.randrange(9)
        cell = _cell(model, "footprint", "memory", fmt, tokens, None, None)
        measured = Measurement(
            kv_bytes=kv_bytes,
            allocated_bytes=allocated,
            allocated_source="resident set (made up)",
            peak_bytes=allocated + block,
        )
        ratio = Ratio(kv_bytes=1.0, allocated_bytes=allocated / kv_bytes)
        return self._record(cell, model, Prediction(kv_bytes), measured, ratio=ratio)

    def decode(
        self, model: MadeUpModel, fmt: str, tokens: int, name: str,
        start: float, end: float, kernel: str,
    ) -> Record:  # fmt: skip
        moved = model.kv_bytes(tokens, fmt, 2)
        over = end + (start - end) * 500 / tokens
        cell = _cell(model, "decode", "attention", fmt, tokens, name, 2)
        return self._timed(cell, model, moved, moved, over, BackendRef(name, "2.13.0", kernel))

    def engine(self, model: MadeUpModel, tokens: int, name: str, over: float) -> Record:
        fmt = "fp32" if self.device.kind == "cpu" else "fp16"
        held = model.kv_bytes(tokens, fmt, model.layers)
        moved = held + model.weights * FORMATS_BYTES[fmt][0]
        cell = replace(
            _cell(model, "model", "engine", fmt, tokens - 48, name, None), prompt_tokens=48
        )
        backend = BackendRef(name, "transformers 5.0.0", "aten::_softmax")
        return self._timed(cell, model, held, moved, over + tokens / 2000, backend)

    def _timed(
        self, cell: Cell, model: MadeUpModel, held: int, moved: int, over: float,
        backend: BackendRef,
    ) -> Record:  # fmt: skip
        read = self.read * self.rng.uniform(0.97, 1.03)
        flops = 10 * read
        floor = moved / read
        samples = tuple(floor * over * self.rng.uniform(0.97, 1.05) for _ in range(15))
        median = statistics.median(samples)
        spread = statistics.median(abs(s - median) for s in samples)
        ordered = sorted(samples)
        timing = Timing(
            median, ordered[3], ordered[-4], 15, 1.4826 * spread / median, samples, "converged"
        )
        rate = moved / median
        measured = Measurement(
            kv_bytes=held,
            time_s=timing,
            tokens_per_s=cell.batch / median if cell.scope == "engine" else None,
            bytes_per_s=rate,
            cache_state="cold",
            max_error=3.1e-4,
        )
        predicted = Prediction(held, moved, 8 * moved, floor, "memory", "probe")
        ratio = Ratio(kv_bytes=1.0, bandwidth=rate / read, floor=median / floor)
        probe = Probe(read, read / 2, flops, (read,) * 15)
        return self._record(cell, model, predicted, measured, probe, ratio, backend)

    def _record(
        self, cell: Cell, model: MadeUpModel, predicted: Prediction, measured: Measurement,
        probe: Probe | None = None, ratio: Ratio | None = None, backend: BackendRef | None = None,
    ) -> Record:  # fmt: skip
        return Record(
            schema=SCHEMA,
            run_id=self.run_id,
            cell_id=cell.cell_id,
            series_id=cell.series_id(self.device.kind, self.device.name),
            attempt=1,
            started_at="2001-01-01T00:00:01.000+00:00",
            suite=cell.suite,
            scope=cell.scope,
            status="ok",
            reason_code=None,
            reason=None,
            model=ModelRef(model.name, "gqa", model.layers, cell.layers_timed, cell.shape_id),
            trace=TraceRef(
                cell.prompt_tokens, cell.think_tokens, cell.answer_tokens, cell.depth_tokens,
                cell.batch,
            ),
            cache=CacheRef(cell.kv_format, cell.layout, cell.page_size, cell.policy),
            backend=backend,
            device=self.device,
            predicted=predicted,
            measured=measured,
            probe=probe,
            ratio=ratio,
            trust=Trust(True),
        )  # fmt: skip


def _cell(
    model: MadeUpModel, suite: str, scope: str, fmt: str, think: int, backend: str | None,
    layers_timed: int | None,
) -> Cell:  # fmt: skip
    return Cell(
        suite=suite,
        scope=scope,  # type: ignore[arg-type]
        model=model.name,
        shape_id=f"shape-{model.layers}",
        kv_format=fmt,
        think_tokens=think,
        backend=backend,
        layers_timed=layers_timed,
    )
