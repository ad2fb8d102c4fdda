"""The KV lines of SGLang.

Source: `mem_cache/memory_pool.py`, `managers/scheduler.py`, `server_args.py`. Its GB are GiB: the source
divides by `GB = 1024 * 1024 * 1024`. The comment above a pattern is a line that it reads.
"""

from __future__ import annotations

from kvgauge.audit.patterns import pattern

_GIB = dict.fromkeys(("kv_bytes", "k_bytes", "v_bytes", "conv_bytes", "recurrent_bytes"), "GiB")  # fmt: skip

TABLE = (
    # [2025-03-25 16:37:06 TP0] KV Cache is allocated. #tokens: 442750, K size: 27.02 GB, V size: 27.02 GB
    # KV Cache is allocated. dtype: torch.bfloat16, #tokens: 1131687, K size: 60.44 GB, V size: 60.44 GB
    pattern(
        "KV Cache is allocated",
        r"KV Cache is allocated\.(?: dtype: torch\.(?P<kv_format>\w{1,32}),)? #tokens: (?P<tokens>NUM),"
        r" K size: (?P<k_bytes>NUM) ?GB, V size: (?P<v_bytes>NUM) ?GB",
        _GIB,
    ),
    # KV Cache is allocated. #tokens: 1234567, KV size: 40.20 GB     (MLA)
    pattern(
        "KV Cache is allocated",
        r"KV Cache is allocated\.(?: dtype: torch\.(?P<kv_format>\w{1,32}),)? #tokens: (?P<tokens>NUM),"
        r" KV size: (?P<kv_bytes>NUM) ?GB",
        _GIB,
    ),
    # SWAKVPool mem usage: 3.18 GB, swa size: 29664, full size: 37081
    pattern(
        "SWAKVPool mem usage",
        r"SWAKVPool mem usage: (?P<kv_bytes>NUM) ?GB, swa size: (?P<window_tokens>NUM),"
        r" full size: (?P<tokens>NUM)",
        _GIB,
    ),
    # Mamba Cache is allocated. max_mamba_cache_size: 22, conv_state size: 0.06GB, ssm_state size: 3.23GB
    pattern(
        "Mamba Cache is allocated",
        r"Mamba Cache is allocated\. max_mamba_cache_size: (?P<states>NUM),"
        r" conv_state size: (?P<conv_bytes>NUM) ?GB, ssm_state size: (?P<recurrent_bytes>NUM) ?GB",
        _GIB,
    ),
    # max_total_num_tokens=442750, chunked_prefill_size=8192, max_prefill_tokens=16384, context_len=131072
    pattern("max_total_num_tokens=", r"\bmax_total_num_tokens=(?P<max_total_tokens>NUM)\b"),
    # Using KV cache dtype: torch.bfloat16
    pattern("Using KV cache dtype", r"Using KV cache dtype: torch\.(?P<kv_format>\w{1,32})"),
    # server_args=ServerArgs(model_path='Qwen/Qwen3-8B', ..., kv_cache_dtype='auto', ..., page_size=1, tp_size=4)  # noqa: E501
    pattern("ServerArgs(", r"(?P<start>ServerArgs\()model_path='(?P<model>[^']{1,120})'"),
    pattern("tp_size=", r"\btp_size=(?P<tp>\d{1,6})"),
    # tp_size=8, pp_size=1, ..., dp_size=8, ..., enable_dp_attention=True
    pattern("dp_size=", r"\bdp_size=(?P<dp>\d{1,6})"),
    pattern("enable_dp_attention=", r"\benable_dp_attention=(?P<dp_attention>True)\b"),
    pattern("pp_size=", r"\bpp_size=(?P<pp>\d{1,6})"),
    pattern("page_size=", r"\bpage_size=(?P<block_tokens>\d{1,9})"),
    pattern("kv_cache_dtype=", r"\bkv_cache_dtype='(?P<kv_format>\w{1,32})'"),
    # Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=63.48 GB
    pattern(
        "Load weight end", r"Load weight end\..{1,120}? dtype=torch\.(?P<model_dtype>\w{1,32})"
    ),
)
