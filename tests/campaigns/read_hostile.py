"""Read one file in a process that holds nothing else: what came, in which time, at what peak memory."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from kvgauge.audit.context import Options
from kvgauge.audit.judge import audit_log
from kvgauge.errors import UserError
from kvgauge.shapes.gguf import read_gguf
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.types import LayerShape, ModelShape

SHAPE = ModelShape(
    "llama", (LayerShape("full", 32, 8, 128, 128),) * 32, 4096, 32_000, None, None, "test"
)


def peak_mb() -> float:
    """The most memory that this process held since it began (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def main(name: str) -> None:
    """Print one JSON object."""
    path = Path(name)
    before, started = peak_mb(), time.perf_counter()
    try:
        if path.suffix == ".log":
            audit_log(path, SHAPE, Options())
        elif path.suffix == ".gguf":
            read_gguf(path)
        else:
            read_config(path)
        came, said = "result", ""
    except UserError as error:
        came, said = "refused", str(error).replace(name, path.name)
    except Exception as error:
        came, said = "escaped", type(error).__name__
    took = time.perf_counter() - started
    print(
        json.dumps(
            {"came": came, "said": said, "seconds": took, "peak": peak_mb(), "before": before}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
