"""Conventions of engines: what each stores beside, or instead of, the bytes that a shape implies.

Only conventions that were read in the engine's own source are here; `not_modelled` names the rest.

- hf: transformers' cache classes as they are.
- vllm: pages of 16 tokens (`CacheConfig.block_size`); DeepSeek's indexer keys as 8-bit elements and one
  fp32 scale for each 128 (132 bytes for 128 elements: `DeepseekV32IndexerCache`).
- llama.cpp: a context padded to 256 tokens (`llama-context.cpp`, `n_ctx_seq`); sliding-window layers of
  `n_swa + n_ubatch` cells, n_ubatch 512 by default (`llama-kv-cache-iswa.cpp`); recurrent state in fp32
  (`llama-model.cpp`, `create_memory`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvgauge.errors import UserError, short
from kvgauge.formats import FORMATS, KVFormat


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine's conventions.

    `window_slack` is what a windowed layer holds beyond its window, in tokens. `state_bits` None
    means the width that the shape states. `kv_formats` None means that all are taken.
    """

    name: str
    page_tokens: int | None = None
    window_slack: int = 0
    state_bits: int | None = None
    index_format: KVFormat = FORMATS["bf16"]
    kv_formats: tuple[str, ...] | None = None
    not_modelled: str = ""


HF = Engine(
    "hf",
    not_modelled="hf: copies while torch.cat grows the cache; DynamicCache keeps window - 1 tokens "
    "between steps, and the window is counted whole",
)
VLLM = Engine(
    "vllm",
    page_tokens=16,
    index_format=KVFormat("8 bits and fp32 scales", 8, 128, scale_bytes=4),
    not_modelled="vllm: the page more that a window across page borders takes, page sizes made equal "
    "between layer kinds of a hybrid, the larger pages of some MLA kernels, "
    "conv states one column shorter, CUDA graphs",
)
LLAMA_CPP = Engine(
    "llama.cpp",
    page_tokens=256,
    window_slack=512,
    state_bits=32,
    kv_formats=(
        "fp32", "fp16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl",
    ),
    not_modelled="llama.cpp: compute buffers, --swa-full, --kv-unified, windows that it "
    "ignores in some architectures, layers split over GPUs "
    "(tensor parallel figures are those of a split by heads), indexer keys (counted as bf16), "
    "conv states one column shorter",
)  # fmt: skip

ENGINES: dict[str, Engine] = {e.name: e for e in (HF, VLLM, LLAMA_CPP)}


def engine_named(name: str) -> Engine:
    """The engine of that name; raises UserError with the known names."""
    found = ENGINES.get(name.lower())
    if found is None:
        raise UserError(f"unknown engine '{short(name)}': one of {', '.join(ENGINES)}")
    return found
