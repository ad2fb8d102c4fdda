"""The KV lines of llama.cpp, old and new, and of the programs that embed it.

Sources: `llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp`, `llama-memory-recurrent.cpp` and their
predecessors in `llama.cpp`; its MiB are MiB. The comment above a pattern is a line that it reads.
"""

from __future__ import annotations

from kvgauge.audit.patterns import pattern

_SIZES = (
    r"size\s{0,4}=\s{0,12}(?P<kv_bytes>NUM) (?P<unit>MiB) \(\s{0,12}(?P<cells>NUM) cells,"
    r"\s{0,6}(?P<layers>NUM) layers(?:,\s{0,4}(?P<states>NUM)(?:/\s{0,4}(?P<streams>NUM))? seqs)?\)"
    r"(?:, K \((?P<k_format>\w{1,16})\):\s{0,12}(?P<k_bytes>NUM) MiB)?"
    r"(?:, V \((?P<v_format>\w{1,16})\):\s{0,12}(?P<v_bytes>NUM) MiB)?"
)

TABLE = (
    # llama_kv_cache_unified: size = 1280.00 MiB (  4096 cells,  80 layers,  1/1 seqs), K (f16):  640.00 MiB, V (f16):  640.00 MiB  # noqa: E501
    # llama_kv_cache: size = 2304.00 MiB (65536 cells,  18 layers,  4/1 seqs)
    pattern("llama_kv_cache", r"llama_kv_cache\w{0,32}:\s{1,12}" + _SIZES),
    # llama_init_from_model: KV self size  = 4352.00 MiB, K (q8_0): 2176.00 MiB, V (q8_0): 2176.00 MiB
    pattern(
        "KV self size",
        r"KV self size\s{1,4}=\s{0,12}(?P<kv_bytes>NUM) (?P<unit>MiB)"
        r"(?:, K \((?P<k_format>\w{1,16})\):\s{0,12}(?P<k_bytes>NUM) MiB)?"
        r"(?:, V \((?P<v_format>\w{1,16})\):\s{0,12}(?P<v_bytes>NUM) MiB)?",
    ),
    # llama_kv_cache_init: kv self size  = 1024.00 MB
    # llama_new_context_with_model: kv self size  =  256.00 MB
    pattern(
        "kv self size",
        r"\bkv self size\s{1,4}=\s{0,12}(?P<kv_bytes>NUM) MB",
        {"kv_bytes": "MiB"},  # in 2023 it divided by 1024 * 1024 and called that MB
    ),
    # llama_kv_cache_init:      CUDA0 KV buffer size =  1024.00 MiB
    pattern("KV buffer size", r"KV buffer size\s{0,4}=\s{0,12}(?P<buffer_bytes>NUM) (?P<unit>MiB)"),
    # llama_kv_cache_init: kv_size = 32768, offload = 1, type_k = 'q8_0', type_v = 'q8_0', n_layer = 64
    pattern(
        "kv_size = ",
        r"\bkv_size = (?P<context_tokens>NUM),"
        r"(?:.{0,80}?type_k = '(?P<k_format>\w{1,16})', type_v = '(?P<v_format>\w{1,16})')?"
        r"(?:, n_layer = (?P<model_layers>\d{1,6}))?",
    ),
    # llama_new_context_with_model: n_ctx      = 4096
    # llama_model_load_internal: n_ctx      = 2048
    # llm_load_print_meta: n_ctx          = 4096
    pattern(
        "n_ctx ",
        r"(?:llama_(?:new_context_with_model|context|model_load_internal)|llm_load_print_meta):"
        r" n_ctx\s{1,20}= (?P<max_tokens>NUM)",
    ),
    # llama_kv_cache_unified_iswa: creating non-SWA KV cache, size = 131072 cells
    # llama_kv_cache_iswa: creating     SWA KV cache, size = 768 cells
    # llama_kv_cache_dsa: creating indexer KV cache, size = 524288 cells
    pattern(
        "creating",
        r"llama_kv_cache\w{0,32}: creating\s{1,8}(?P<cache_kind>non-SWA|SWA|indexer) KV cache",
    ),
    # llama_memory_recurrent: size =  201.00 MiB (     4 cells,  32 layers,  4 seqs  0 rs_seq), R (f32):    9.00 MiB, S (f32):  192.00 MiB  # noqa: E501
    pattern(
        "llama_memory_recurrent",
        r"llama_memory_recurrent: size\s{0,4}=\s{0,12}(?P<state_bytes>NUM) (?P<unit>MiB)"
        r" \(\s{0,12}(?P<states>NUM) cells,\s{0,6}(?P<layers>NUM) layers"
        r"(?:,\s{0,4}NUM seqs(?:\s{1,4}(?P<state_copies>NUM) rs_seq)?)?\)"
        r"(?:, R \((?:f32)\):\s{0,12}(?P<conv_bytes>NUM) MiB)?"
        r"(?:, S \((?:f32)\):\s{0,12}(?P<recurrent_bytes>NUM) MiB)?",
    ),
    # llama_model_loader: loaded meta data with 33 key-value pairs and 579 tensors from m.gguf (version GGUF V3)  # noqa: E501
    pattern("loaded meta data", r"llama_model_loader: (?P<start>loaded meta data)"),
    # print_info: general.name     = Qwen2.5 32B
    pattern("general.name", r"general\.name\s{0,8}(?:str\s{0,8})?= (?P<model>.{1,80})"),
)
