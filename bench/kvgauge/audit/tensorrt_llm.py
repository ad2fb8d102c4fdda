"""The KV lines of TensorRT-LLM.

Source: `batch_manager/kvCacheManager.cpp`. Its GiB are GiB. The comment above a pattern is a line that it
reads.
"""

from __future__ import annotations

from kvgauge.audit.patterns import pattern

TABLE = (
    # [TensorRT-LLM][INFO] [MemUsageChange] Allocated 26.91 GiB for max tokens in paged KV cache (220480).
    pattern(
        "paged KV cache",
        r"Allocated (?P<kv_bytes>NUM) ?(?P<unit>[KMG]i?B) for max tokens in paged KV cache"
        r" \((?P<tokens>NUM)\)",
    ),
    # [TensorRT-LLM][INFO] Number of blocks in KV cache primary pool: 4607
    pattern(
        "KV cache primary pool",
        r"Number of blocks in KV cache primary pool: (?P<blocks>NUM)",
    ),
    # [TensorRT-LLM][INFO] Max KV cache pages per sequence: 2048
    # [TensorRT-LLM][INFO] Max KV cache blocks per sequence: 65
    pattern(
        "per sequence",
        r"Max KV cache (?:pages|blocks) per sequence: (?P<blocks_per_request>NUM)",
    ),
    # [TensorRT-LLM][INFO] Number of tokens per block: 64.
    pattern("tokens per block", r"[Nn]umber of tokens per block: (?P<block_tokens>\d{1,9})"),
    # [02/14/2025-09:38:53] [TRT-LLM] [I] max_seq_len=131072, max_num_requests=2048, max_num_tokens=8192
    pattern("[TRT-LLM]", r"\[TRT-LLM\].{0,200}?\bmax_seq_len=(?P<max_tokens>\d{1,12})"),
    # [TensorRT-LLM][INFO] TRTGptModel maxSequenceLen: 4096
    pattern("TRTGptModel maxSequenceLen", r"TRTGptModel maxSequenceLen: (?P<max_tokens>\d{1,12})"),
    # [TRT-LLM] [I] LLM Args: ... tensor_parallel_size=2 pipeline_parallel_size=1 ...
    pattern("[T", r"\[TRT-LLM\].{0,2000}?\btensor_parallel_size=(?P<tp>\d{1,6})"),
    pattern("[T", r"\[TRT-LLM\].{0,2000}?\bpipeline_parallel_size=(?P<pp>\d{1,6})"),
    # [TensorRT-LLM][INFO] MPI size: 4, MPI local size: 4, rank: 0
    pattern("MPI size", r"\[TensorRT-LLM\].{0,40}MPI size: (?P<tp>\d{1,6}),"),
    # [TensorRT-LLM][INFO] Engine version 0.11.0 found in the config file, assuming engine(s) built by ...
    pattern("Engine version", r"\[TensorRT-LLM\].{0,40}(?P<start>Engine version)"),
)
