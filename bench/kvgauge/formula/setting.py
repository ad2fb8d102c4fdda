"""Setting: how a trace is served, every name resolved and every number checked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from kvgauge.errors import UserError
from kvgauge.formats import KVFormat, kv_format
from kvgauge.formula.capacity import checked_reserve_bytes, checked_utilization
from kvgauge.formula.engines import Engine, engine_named
from kvgauge.formula.hardware import Gpu, gpu_named
from kvgauge.formula.held import Storage
from kvgauge.formula.weights import WeightFormat, weight_format

MAX_BATCH = 1_000_000
MAX_RANKS = 4096


@dataclass(frozen=True, slots=True)
class Setting:
    """`storage` is one rank's; `whole` is the same cache on one rank."""

    storage: Storage
    whole: Storage
    weights: WeightFormat
    batch: int
    gpu: Gpu | None
    utilization: float
    reserve_bytes: int

    @property
    def fmt(self) -> KVFormat:
        """What K and V are stored in."""
        return self.storage.fmt

    @property
    def engine(self) -> Engine:
        """Whose conventions hold."""
        return self.storage.engine

    @property
    def ranks(self) -> int:
        """Tensor parallel size."""
        return self.storage.tensor_parallel


@lru_cache(maxsize=1024)
def setting(
    kv_format_name: str = "fp16",
    weight_format_name: str = "bf16",
    batch: int = 1,
    page_size: int | None = None,
    tensor_parallel: int = 1,
    engine: str = "hf",
    gpu: str | None = None,
    utilization: float = 0.9,
    reserve_bytes: int = 0,
) -> Setting:
    """A checked setting; raises UserError for what is impossible. The same words give the same one."""
    fmt, chosen = kv_format(kv_format_name), engine_named(engine)
    if chosen.kv_formats is not None and fmt.name not in chosen.kv_formats:
        raise UserError(
            f"{chosen.name} has no KV format {fmt.name}: one of {', '.join(chosen.kv_formats)}"
        )
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch {batch}: must be between 1 and {MAX_BATCH}")
    if tensor_parallel > MAX_RANKS:
        raise UserError(f"tensor parallel size {tensor_parallel}: must be at most {MAX_RANKS}")
    return Setting(
        Storage(fmt, page_size, tensor_parallel, chosen),
        Storage(fmt, page_size, 1, chosen),
        weight_format(weight_format_name),
        batch,
        None if gpu is None else gpu_named(gpu),
        checked_utilization(utilization),
        checked_reserve_bytes(reserve_bytes),
    )
