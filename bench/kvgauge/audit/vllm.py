"""The KV lines of vLLM, V0 and V1.

Sources: `worker/worker.py`, `executor/executor_base.py` (V0); `v1/worker/gpu_worker.py` and
`v1/core/kv_cache_utils.py` (V1). Its GiB are GiB. The comment above a pattern is a line that it reads.
"""

from __future__ import annotations

from kvgauge.audit.patterns import pattern

# Between a setting's name and its value: `name=value` or, in a dictionary, `'name': 'value'`.
_IS = r"'?[=:] ?'?"

TABLE = (
    # (APIServer pid=1) INFO 12-11 00:05:02 [utils.py:253] non-default args: {'model': 'openai/gpt-oss-20b'}
    pattern("non-default args", r"(?P<start>non-default args: )"),
    # Initializing a V1 LLM engine (v0.11.0) with config: model='meta-llama/Llama-3.1-8B', ...
    pattern("LLM engine (v", r"(?P<start>Initializing an? (?:V1 )?LLM engine)"),
    pattern("LLM engine (v", r"LLM engine \(v.{1,40}config: model='(?P<model>[^']{1,120})'"),
    # INFO 11-20 10:00:00 gpu_executor.py:122] # GPU blocks: 1952, # CPU blocks: 2048
    # INFO 07-09 12:57:45 [executor_base.py:111] # cuda blocks: 27843, # CPU blocks: 2048
    pattern(" blocks: ", r"\b(?:GPU|cuda) blocks: (?P<blocks>NUM)"),
    # num_gpu_blocks=1952
    # Overriding num_gpu_blocks=0 with num_gpu_blocks_override=512
    pattern("num_gpu_blocks", r"\bnum_gpu_blocks(?:_override)?[=:] ?(?P<blocks>[1-9][\d,]{0,60})"),
    # (EngineCore_DP0 pid=130) INFO 12-11 00:06:53 [kv_cache_utils.py:1286] GPU KV cache size: 686,320 tokens
    pattern("GPU KV cache size", r"GPU KV cache size: (?P<tokens>NUM) tokens"),
    # Maximum concurrency for 100,000 tokens per request: 6.86x
    pattern(
        "Maximum concurrency",
        r"Maximum concurrency for (?P<request_tokens>NUM) tokens per request: (?P<concurrency>NUM)x",
    ),
    # (Worker_TP0 pid=213) INFO 12-11 00:06:53 [gpu_worker.py:359] Available KV cache memory: 52.36 GiB
    pattern(
        "Available KV cache memory",
        r"Available KV cache memory: (?P<available_bytes>NUM) ?(?P<unit>GiB)",
    ),
    # the rest of the memory reserved for KV Cache is 65.65GiB.
    pattern(
        "reserved for KV Cache",
        r"reserved for KV Cache is (?P<available_bytes>NUM) ?(?P<unit>GiB)",
    ),
    # kv_cache_size=3.81GiB
    pattern("kv_cache_size=", r"kv_cache_size=(?P<available_bytes>NUM) ?(?P<unit>GiB)"),
    # ValueError: To serve at least one request with the models's max seq len (131072), 24.00 GiB KV cache is needed, which is larger than the available KV cache memory (10.91 GiB).  # noqa: E501
    pattern(
        "To serve at least one request",
        r"max seq len \((?P<request_tokens>NUM)\), \(?(?P<needed_bytes>NUM) (?P<unit>GiB) KV cache is",
    ),
    # ... dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=4, kv_cache_dtype=auto, ...
    # non-default args: {'tensor_parallel_size': 2, 'kv_cache_dtype': 'fp8', 'block_size': 32}
    pattern("tensor_parallel_size", r"\btensor_parallel_size" + _IS + r"(?P<tp>\d{1,6})"),
    pattern("pipeline_parallel_size", r"\bpipeline_parallel_size" + _IS + r"(?P<pp>\d{1,6})"),
    pattern("kv_cache_dtype", r"\bkv_cache_dtype" + _IS + r"(?P<kv_format>[\w.]{1,32})"),
    pattern("dtype=torch.", r"(?<![\w.])dtype=torch\.(?P<model_dtype>\w{1,32})"),
    pattern("block_size", r"(?<![\w.])block_size" + _IS + r"(?P<block_tokens>\d{1,9})"),
    pattern("max_seq_len=", r"\bmax_seq_len=(?P<max_tokens>\d{1,12})"),
    pattern("max_model_len", r"\bmax_model_len" + _IS + r"(?P<max_tokens>\d{1,12})"),
)
