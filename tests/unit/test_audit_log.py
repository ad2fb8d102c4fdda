"""The log auditor on logs of each engine: what agrees, what disagrees, what cannot be told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from audit_for_tests import (
    GATED_DELTA,
    GPT_OSS,
    LOGS,
    MLA,
    audited,
    finding,
    plain,
    shape_of,
    verdicts,
)
from faults.test_cli_faults import kvgauge
from kvgauge.audit.context import Options
from kvgauge.audit.judge import audit_text
from kvgauge.audit.sizes import Case, token_bytes
from kvgauge.errors import UserError
from kvgauge.formats import kv_format
from kvgauge.formula.held import Storage, growth_bytes
from kvgauge.shapes.catalogue import shape_named
from kvgauge.shapes.types import LayerShape, ModelShape

L70, L8 = shape_named("llama-3.1-70b"), shape_named("llama-3.1-8b")
QWEN_32B = plain(64, 8, 128)


@pytest.mark.parametrize(
    ("log", "shape", "agreeing"),
    [
        ("llamacpp_old_q8_0.log", QWEN_32B, {"8:buffer_bytes", "9:kv_bytes", "9:k_bytes", "9:v_bytes"}),
        ("llamacpp_unified_70b.log", L70,
         {"3:buffer_bytes", "4:kv_bytes", "4:k_bytes", "4:v_bytes"}),
        ("llamacpp_iswa_gpt_oss.log", GPT_OSS,
         {"4:buffer_bytes", "5:kv_bytes", "5:k_bytes", "5:v_bytes",
          "7:buffer_bytes", "8:kv_bytes", "8:k_bytes", "8:v_bytes"}),
        ("llamacpp_recurrent.log", GATED_DELTA,
         {"1:kv_bytes", "1:k_bytes", "1:v_bytes", "4:state_bytes", "4:conv_bytes",
          "4:recurrent_bytes"}),
        ("vllm_v0_8b.log", L8, {"3:blocks", "4:concurrency"}),
        ("vllm_v1_70b_tp4_interleaved_ansi.log", L70, {"6:tokens", "8:concurrency"}),
        ("llamacpp_2023_8b.log", L8, {"3:buffer_bytes", "4:kv_bytes"}),
        ("vllm_v1_8b_dp2_tp2.log", L8,
         {"7:tokens", "8:concurrency", "9:tokens", "10:concurrency"}),
        ("sglang_8b_dp_attention.log", L8, {"2:k_bytes", "2:v_bytes", "4:max_total_tokens"}),
        ("vllm_v1_too_long.log", L8, {"1:needed_bytes"}),
        ("sglang_235b_tp4_interleaved.log", shape_named("qwen3-235b-a22b"),
         {"3:k_bytes", "3:v_bytes", "7:max_total_tokens"}),
        ("sglang_mla.log", MLA, {"1:kv_bytes"}),
        ("tensorrt_llm_8b.log", L8, {"3:blocks", "5:blocks_per_request", "7:kv_bytes", "7:tokens"}),
        ("tensorrt_llm_8b_crlf.log", L8,
         {"3:blocks", "5:blocks_per_request", "7:kv_bytes", "7:tokens"}),
    ],
)  # fmt: skip
def test_a_right_log_agrees(log: str, shape: ModelShape, agreeing: set[str]) -> None:
    audit = audited(log, shape)
    found = verdicts(audit)
    assert {key for key, verdict in found.items() if verdict == "agree"} == agreeing
    assert "disagree" not in found.values()
    for ledger in audit.ledgers:
        assert sum(row.bytes for row in ledger.rows) == ledger.logged_bytes
        assert ledger.rows[-1].name == "unexplained remainder"
        assert ledger.rows[-1].bytes == 0


@pytest.mark.parametrize("log", sorted(path.name for path in LOGS.glob("*.log")))
def test_the_wrong_model_never_agrees_on_bytes(log: str) -> None:
    audit = audited(log, plain(7, 3, 40, "wrong"))
    sizes = [
        f for f in audit.findings if f.what in ("kv_bytes", "k_bytes", "v_bytes", "needed_bytes")
    ]
    assert all(f.verdict != "agree" for f in sizes)
    for each in audit.findings:
        if each.verdict == "disagree":
            assert each.computed is not None
            assert each.difference_percent or each.computed == 0
        if each.verdict == "cannot tell":
            assert each.reason


def test_a_truncated_log_says_what_is_missing() -> None:
    audit = audited("llamacpp_truncated_70b.log", L70)
    (only,) = audit.findings
    assert only.verdict == "cannot tell"
    assert "--tokens" in only.reason
    (told,) = audited("llamacpp_truncated_70b.log", L70, tokens=(2048, 4096)).findings
    assert (told.verdict, told.logged) == ("agree", "1280.00")


def test_several_start_ups_are_each_audited() -> None:
    audit = audited("two_start_ups.log", L70)
    assert audit.start_ups == 2
    assert "2 start-ups" in audit.notes[0]
    assert {f.start_up: f.verdict for f in audit.findings} == {1: "agree", 2: "cannot tell"}


def of(text: str, shape: ModelShape = L8, **options: object) -> str:
    """The hypotheses of the only disagreeing finding."""
    audit = audit_text(text.encode(), "log", shape, Options(**options))  # type: ignore[arg-type]
    wrong = [f for f in audit.findings if f.verdict == "disagree"]
    assert wrong, audit.findings
    return "; ".join(wrong[0].hypotheses)


def test_hypotheses_reproduce_what_is_wrong_with_the_assumptions() -> None:
    sglang = "KV Cache is allocated. #tokens: 442750, K size: 27.02 GB, V size: 27.02 GB"
    assert "tensor parallel size 1 instead of 2" in of(sglang, tp=2)
    assert "KV format fp16 instead of fp8_e4m3" in of(sglang, kv_format="fp8_e4m3")
    trt = "Allocated {} GiB for max tokens in paged KV cache (220480)"
    assert "K alone" in of(trt.format("13.46"))
    assert "other of GB and GiB" in of(trt.format("28.90"))  # 28.90 GB, called GiB
    llama = "llama_kv_cache: size = 1024.00 MiB (4096 cells, 32 layers, 1/1 seqs)"
    assert "KV format fp32 instead of fp16" in of(llama)
    assert "tensor parallel size" not in of(llama)


def test_what_no_change_explains_has_no_hypothesis() -> None:
    assert of("Allocated 3.33 GiB for max tokens in paged KV cache (220480)") == ""


def test_a_difference_is_logged_minus_computed() -> None:
    text = b"llama_kv_cache: size = 600.00 MiB ( 4096 cells, 32 layers, 1/1 seqs)"
    (wrong,) = audit_text(text, "log", L8, Options()).findings
    assert wrong.difference_bytes == (600 - 512) * 2**20
    assert wrong.difference_percent == pytest.approx(100 * 88 / 512)


def test_agreement_is_to_the_printed_decimals_and_no_further() -> None:
    # 220,480 tokens of 131,072 bytes are 26.9141 GiB
    for printed, verdict in (("26.91", "agree"), ("26.92", "disagree"), ("26.9", "agree"),
                             ("26.914", "agree"), ("26.913", "disagree"), ("27", "agree")):  # fmt: skip
        text = f"Allocated {printed} GiB for max tokens in paged KV cache (220480)".encode()
        assert finding(audit_text(text, "log", L8, Options()), "kv_bytes").verdict == verdict, (
            printed
        )


def test_vllm_counts_windowed_layers_as_if_they_kept_all() -> None:
    # 36 layers, two groups of 18, blocks of 16 tokens: 16 x 2,048 x 36 bytes for each reported token of a
    # pair; 10 GiB hold 9,102 blocks of 18 layers, so 4,551 x 16 tokens.
    text = "Available KV cache memory: 10.00 GiB\nGPU KV cache size: {} tokens\n"
    unknown = audit_text(text.format("145,632").encode(), "log", GPT_OSS, Options())
    assert finding(unknown, "tokens").verdict == "cannot tell"
    assert "max_seq_len" in finding(unknown, "tokens").reason
    told = audit_text(
        ("max_seq_len=131072\n" + text.format("145,632")).encode(), "log", GPT_OSS, Options()
    )
    wrong = finding(told, "tokens")
    assert wrong.verdict == "disagree"
    assert any("hybrid pages" in each for each in wrong.hypotheses)


def agreeing(text: str, shape: ModelShape = L8, **options: object) -> set[str]:
    """The figures that agree; none may disagree, and no ledger may leave a rest."""
    audit = audit_text(text.encode(), "log", shape, Options(**options))  # type: ignore[arg-type]
    assert "disagree" not in verdicts(audit).values(), audit.findings
    assert all(ledger.rows[-1].bytes == 0 for ledger in audit.ledgers)
    return {f"{f.logged}" for f in audit.findings if f.verdict == "agree"}


RANKS_8B = (("60.10", "984,672", "120.20"), ("60.35", "988,768", "120.70"))  # GiB, tokens, requests


@pytest.mark.parametrize(
    ("tp", "workers", "engines"),
    [
        (2, ("Worker_TP0", "Worker_TP1"), ("EngineCore_DP0", "EngineCore_DP0")),
        (2, ("Worker_TP1", "Worker_TP0"), ("EngineCore_DP0", "EngineCore_DP0")),
        (2, ("Worker_TP1", "Worker_TP0"), ("Worker_TP1", "Worker_TP0")),
        (2, ("Worker_DP1_TP0", "Worker_DP0_TP0"), ("EngineCore_DP1", "EngineCore_DP0")),
        (2, ("VllmWorker", "VllmWorker"), ("EngineCore_0", "EngineCore_0")),
    ],
)
def test_vllm_ranks_have_figures_of_their_own(
    tp: int, workers: tuple[str, str], engines: tuple[str, str]
) -> None:
    text = "".join(
        f"({worker} pid=9) INFO [gpu_worker.py:298] Available KV cache memory: {gib} GiB\n"
        for worker, (gib, _, _) in zip(workers, RANKS_8B, strict=True)
    ) + "".join(
        f"({engine} pid=8) INFO [kv_cache_utils.py:864] GPU KV cache size: {tokens} tokens\n"
        f"({engine} pid=8) INFO [kv_cache_utils.py:868] Maximum concurrency for 8,192 tokens per "
        f"request: {requests}x\n"
        for engine, (_, tokens, requests) in zip(engines, RANKS_8B, strict=True)
    )  # fmt: skip
    assert agreeing(text, tp=tp) == {figure for rank in RANKS_8B for figure in rank[1:]}


def test_a_vllm_figure_of_another_rank_disagrees() -> None:
    text = (
        "(EngineCore_DP0 pid=7) INFO Available KV cache memory: 50.00 GiB\n"
        "(EngineCore_DP1 pid=8) INFO Available KV cache memory: 49.00 GiB\n"
        "(EngineCore_DP1 pid=8) INFO GPU KV cache size: {} tokens\n"
        "(EngineCore_DP0 pid=7) INFO GPU KV cache size: {} tokens\n"
    )
    assert agreeing(text.format("401,408", "409,600")) == {"401,408", "409,600"}
    audit = audit_text(text.format("409,600", "401,408").encode(), "log", L8, Options())
    assert [f.verdict for f in audit.findings if f.what == "tokens"] == ["disagree"] * 2


def test_vllm_settings_are_read_from_a_dictionary() -> None:
    # 10 GiB over 32 layers x 4 heads x 256 elements of a byte: 327,680 tokens, in blocks of 32
    text = (
        "(APIServer pid=1) INFO 10-02 [utils.py:233] non-default args: {'model': 'm', "
        "'tensor_parallel_size': 2, 'kv_cache_dtype': 'fp8', 'block_size': 32, 'max_model_len': 32768}\n"
        "Available KV cache memory: 10.00 GiB\nGPU KV cache size: 327,680 tokens\n"
    )
    assert agreeing(text) == {"327,680"}
    again = text.replace("size': 2", "size': 4").replace("327,680", "655,360")
    assert agreeing(text + again) == {"327,680", "655,360"}


def test_dp_attention_of_sglang_cuts_the_ranks_into_groups() -> None:
    # 1,048,575 tokens and the padding one, 32 layers x 1024 elements of 2 bytes: 64 GiB on one rank
    text = (
        "server_args=ServerArgs(model_path='m', page_size=1, tp_size=2, pp_size=1, dp_size=2, "
        ""
        + "other=1, "
        * 700
        + "enable_dp_attention={})\n[2025-06-01 10:00:00 DP1 TP1] KV Cache is allocated. "
        "#tokens: 1048575, K size: {} GB, V size: {} GB\n"
    )
    assert agreeing(text.format("True", "64.00", "64.00")) == {"64.00"}
    assert agreeing(text.format("False", "32.00", "32.00")) == {"32.00"}


def test_llama_cpp_once_expanded_the_latent() -> None:
    lite = LayerShape("mla", 16, k_dim=192, v_dim=128, latent_dim=512, rope_dim=64)
    text = (
        "llama_new_context_with_model: n_ctx      = 4096\n"
        "llama_new_context_with_model: KV self size  = 1080.00 MiB, K (f16):  648.00 MiB, "
        "V (f16):  432.00 MiB\n"
    )
    audit = audit_text(text.encode(), "log", shape_of("lite", *(lite,) * 27), Options())
    assert len(audit.findings) == 3
    for each in audit.findings:
        assert any("expanded from the latent" in text for text in each.hypotheses), each
    unknown = replace(lite, k_dim=0, v_dim=0)
    assert "expanded" not in of(text, shape_of("lite", *(unknown,) * 27))


def test_the_cache_of_another_model_does_not_disagree() -> None:
    text = (
        "llama_kv_cache: size = 512.00 MiB ( 4096 cells, 32 layers, 1/1 seqs), K (f16): 256.00 MiB, "
        "V (f16): 256.00 MiB\n"
        "llama_kv_cache: size = 128.00 MiB ( 4096 cells, 16 layers, 1/1 seqs), K (f16): 64.00 MiB, "
        "V (f16): 64.00 MiB\n"
    )
    assert agreeing(text) == {"512.00", "256.00"}
    other = audit_text(text.encode(), "log", L8, Options()).findings[-1]
    assert "the line speaks of 16 layers, the model has 32 such" in other.reason
    old = "".join(
        f"llama_kv_cache_init: kv_size = {cells}, offload = 1, type_k = 'f16', type_v = 'f16', "
        f"n_layer = {layers}, can_shift = 1\n"
        f"llama_kv_cache_init:      CUDA0 KV buffer size = {size} MiB\n"
        f"llama_init_from_model: KV self size  = {size} MiB\n"
        for cells, layers, size in ((4096, 32, "512.00"), (2048, 16, "64.00"))
    )
    assert agreeing(old) == {"512.00"}
    assert "16 layers" in audit_text(old.encode(), "log", L8, Options()).findings[-1].reason


def test_the_lines_of_llama_cpp_of_2023() -> None:
    for line in ("llama_kv_cache_init: kv self size  = {} MB",
                 "llama_new_context_with_model: kv self size  = {} MB"):  # fmt: skip
        text = f"llama_new_context_with_model: n_ctx      = 4096\n{line}\n"
        assert agreeing(text.format("512.00")) == {"512.00"}
        assert "KV format fp32" in of(text.format("1024.00"))


def test_sglang_pads_by_a_page() -> None:
    layer_bytes = 8 * 128 * 2  # of K, one token of one layer; 32 layers; pages of 64
    size = (1000 + 64) * layer_bytes * 32 / 2**30
    text = f"page_size=64\nKV Cache is allocated. #tokens: 1000, K size: {size:.5f} GB, V size: {size:.5f} GB"
    assert finding(audit_text(text.encode(), "log", L8, Options()), "k_bytes").verdict == "agree"


def test_two_pools_of_sglang() -> None:
    size = (4000 * 18 + 1000 * 18) * 2 * 8 * 64 * 2 / 2**30
    text = f"SWAKVPool mem usage: {size:.2f} GB, swa size: 1000, full size: 4000"
    assert (
        finding(audit_text(text.encode(), "log", GPT_OSS, Options()), "kv_bytes").verdict == "agree"
    )


def test_llama_cpp_may_store_a_latent_twice() -> None:
    once, twice = 61 * 576 * 2 * 4096 / 2**20, 61 * (576 + 512) * 2 * 4096 / 2**20
    line = (
        "llama_kv_cache: size = {:.2f} MiB ( 4096 cells, 61 layers, 1/1 seqs), "
        "K (f16): {:.2f} MiB, V (f16): {:.2f} MiB"
    )
    for total in (once, twice):
        text = line.format(total, once, total - once).encode()
        assert set(verdicts(audit_text(text, "log", MLA, Options())).values()) == {"agree"}


@pytest.mark.parametrize(
    "text",
    [
        "Allocated 26.91 GiB for max tokens in paged KV cache (" + "9" * 40 + ")",
        "Allocated " + "9" * 40 + " GiB for max tokens in paged KV cache (220480)",
        "GPU KV cache size: " + "9" * 40 + " tokens",
        "GPU KV cache size: 452,448 tokens",
        "# GPU blocks: 1952, # CPU blocks: 2048",
        "Available KV cache memory: -12.1 GiB",
        "Maximum concurrency for 0 tokens per request: 1.56x",
        "Maximum concurrency for 20000 tokens per request: 1.56x",
        "max_total_num_tokens=1000",
        "KV Cache is allocated. dtype: torch.float4_e2m1, #tokens: 10, K size: 1.00 GB, V size: 1.00 GB",
        "pipeline_parallel_size=2\nAvailable KV cache memory: 3.81 GiB\n# GPU blocks: 1952",
        "KV self size  = 4352.00 MiB, K (q9_9): 2176.00 MiB, V (q9_9): 2176.00 MiB",
        "llama_memory_recurrent: size = 1.00 MiB ( 1 cells, 32 layers, 1 seqs), R (f32): 0.50 MiB",
    ],
)
def test_what_cannot_be_told_says_why(text: str) -> None:
    audit = audit_text(text.encode(), "log", L8, Options())
    assert audit.findings
    assert all(f.verdict == "cannot tell" and f.reason for f in audit.findings)


def test_ranks_are_counted_where_no_line_states_them() -> None:
    line = (
        "[10:02:12 TP{}] KV Cache is allocated. #tokens: 442750, K size: 6.76 GB, V size: 6.76 GB\n"
    )
    text = "".join(line.format(rank) for rank in (0, 2, 3, 1)).encode()
    audit = audit_text(text, "log", L8, Options())
    assert {f.verdict for f in audit.findings} == {"agree"}
    assert any("lines of so many ranks" in said for said in audit.assumptions)


def test_ranks_that_do_not_divide_cannot_be_told() -> None:
    text = b"tensor_parallel_size=3\nAvailable KV cache memory: 3.81 GiB\n# GPU blocks: 1952"
    assert "does not divide" in finding(audit_text(text, "log", L8, Options()), "blocks").reason


@pytest.mark.parametrize("data", [b"", b"\n", b"INFO: nothing here", b"\x00" * 100, b"n_ctx = 5"])
def test_a_file_without_kv_lines_names_the_lines(data: bytes) -> None:
    with pytest.raises(UserError, match=r"no KV-cache line found; looked for llama\.cpp"):
        audit_text(data, "log", L8, Options())


def test_cuts_escapes_and_nul_bytes_do_not_hide_a_line() -> None:
    line = b"Allocated 26.91 GiB for max tokens in paged KV cache (220480)."
    for data in (
        b"\x1b[32mINFO\x1b[0m " + line + b"\x1b[0m", line.replace(b"G", b"G\0"), b"\xff\xfe " + line,
        line + b" " * 10**6, line.decode().encode("utf-16-le"), b"x\r" + line + b"\r",
        b"#033[1;36m(W pid=2)#033[0;0m " + line,
    ):  # fmt: skip
        assert finding(audit_text(data, "log", L8, Options()), "kv_bytes").verdict == "agree"
    with pytest.raises(UserError):  # beyond the cut
        audit_text(b"x" * 20_000 + line, "log", L8, Options())


def test_parts_of_a_token_sum_to_the_formula() -> None:
    for shape in (L8, GPT_OSS, MLA, GATED_DELTA):
        for name in ("bf16", "q8_0", "fp8_e4m3"):
            fmt = kv_format(name)
            case = Case(shape, "sglang", fmt, fmt, 1)
            parts = [token_bytes(case, part) for part in ("k", "v", "index")]
            assert sum(parts) == token_bytes(case, "kv") == growth_bytes(shape, 0, Storage(fmt))


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    right = kvgauge(
        "audit-log", str(LOGS / "tensorrt_llm_8b.log"), "--model", "llama-3.1-8b", "--json"
    )
    assert right.returncode == 0, right.stderr
    document = json.loads(right.stdout)
    assert document["counts"] == {"agree": 4, "disagree": 0, "cannot_tell": 0}
    assert document["exit_code"] == 0
    wrong = kvgauge("audit-log", str(LOGS / "tensorrt_llm_8b.log"), "--model", "llama-3.1-70b")
    assert wrong.returncode == 4
    assert "+" not in wrong.stderr
    assert "disagree" in wrong.stdout
    (tmp_path / "empty.log").touch()
    for arguments in (
        ("audit-log", str(tmp_path / "empty.log"), "--model", "llama-3.1-8b"),
        ("audit-log", str(tmp_path), "--model", "llama-3.1-8b"),
        ("audit-log", str(tmp_path / "none.log"), "--model", "llama-3.1-8b"),
        ("audit-log", str(LOGS / "README.md"), "--model", "llama-3.1-8b"),
        ("audit-log", str(LOGS / "sglang_mla.log"), "--model", "nonsense"),
        ("audit-log", str(LOGS / "sglang_mla.log"), "--model", "llama-3.1-8b", "--tp", "0"),
        (
            "audit-log",
            str(LOGS / "sglang_mla.log"),
            "--model",
            "llama-3.1-8b",
            "--kv-format",
            "fp7",
        ),
        ("audit-log", str(LOGS / "sglang_mla.log"), "--model", "llama-3.1-8b", "--tokens", "-5"),
        ("audit-log", str(LOGS / "sglang_mla.log")),
    ):
        done = kvgauge(*arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stdout == ""
