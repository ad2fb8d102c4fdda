"""The real suites on the CPU, on a model small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvgauge import jobs, runner
from kvgauge.caches.contiguous import ContiguousCache
from kvgauge.devices.cpu import CpuDevice
from kvgauge.errors import UserError
from kvgauge.formats import KVFormat
from kvgauge.schema import Run
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from kvgauge_kernels import BACKENDS, KVView
from level_for_tests import of_this_cpu

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3,
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "vocab_size": 100, "tie_word_embeddings": False,
}  # fmt: skip


class NoProbe:
    """A probe that takes no time: physics and ratios are not what these tests are about."""

    def read_bytes_per_s(self) -> float:
        return 1e12

    copy_bytes_per_s = flops_per_s = cached_read_bytes_per_s = read_bytes_per_s
    best_read_bytes_per_s = read_bytes_per_s
    loops = "made-up"

    def nothing(self) -> None:
        return None

    integer_ops_per_s = ping_pong_ns = nothing


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(runner, "make_probe", lambda _device: NoProbe())
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


def run(model: str, tmp_path: Path, suite: str, **more: object) -> Run:
    options = jobs.Options(
        suites=(suite,),
        models=(model,),
        think_tokens=(33, 70),
        **more,  # type: ignore[arg-type]
    )
    folder = RunFolder.create(tmp_path / f"run-{suite}")
    result = runner.execute(options, CpuDevice(), folder, ["kvgauge", "run"])
    assert load_run(folder.path) == result
    return result


def test_footprint_equals_the_formula_to_the_byte(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, "footprint")
    assert result.manifest.status == "complete"
    assert len(result.records) == 6  # three formats, two depths
    for r in result.records:
        assert r.status == "ok"
        assert r.measured is not None
        row = {"fp16": 2 * 16 * 2, "bf16": 2 * 16 * 2, "int8": 2 * (16 + 2)}[r.cache.format]
        assert r.measured.kv_bytes == r.predicted.kv_bytes == 3 * 2 * row * r.trace.depth_tokens


def test_one_byte_in_the_formula_turns_footprint_red(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KVFormat.row_bytes
    monkeypatch.setattr(KVFormat, "row_bytes", lambda self, n: right(self, n) + 1)
    result = run(model, tmp_path, "footprint")
    assert {(r.status, r.reason_code) for r in result.records} == {("invalid", "bytes_differ")}
    assert result.manifest.status == "incomplete"


def test_one_byte_in_the_cache_turns_footprint_red(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ContiguousCache.storage_bytes
    monkeypatch.setattr(ContiguousCache, "storage_bytes", lambda self: right(self) + 1)
    result = run(model, tmp_path, "footprint")
    assert {(r.status, r.reason_code) for r in result.records} == {("invalid", "bytes_differ")}


def test_decode_measures_every_backend_that_is_here(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, "decode")
    records = of_this_cpu(result.records)
    assert {r.status for r in records} == {"ok"}
    assert {r.backend.name for r in records if r.backend} >= {
        "eager", "sdpa-math", "sdpa-flash", "dequant+sdpa",
    }  # fmt: skip
    assert "flash-attn" in result.manifest.left_out or torch.cuda.is_available()
    for r in records:
        assert r.measured is not None
        assert r.measured.time_s is not None
        assert r.measured.time_s.n >= 5
        assert r.backend is not None
        assert r.backend.kernel
        assert r.ratio is not None
        assert r.ratio.kv_bytes == 1


def test_a_backend_asked_for_by_name_is_unsupported_with_the_reason(
    model: str, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("flash-attn may run here")
    result = run(model, tmp_path, "decode", backends=("flash-attn",))
    assert {r.status for r in result.records} == {"unsupported"}
    assert all(r.reason for r in result.records)
    assert result.manifest.status == "complete"


class Liar:
    """A real backend whose decode is replaced."""

    def __init__(self, real: object, decode_: object) -> None:
        self._real, self.decode = real, decode_

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def lie(monkeypatch: pytest.MonkeyPatch, name: str, decode_: object) -> None:
    monkeypatch.setitem(BACKENDS, name, Liar(BACKENDS[name], decode_))


def reasons(result: Run) -> set[tuple[str, str | None]]:
    return {(r.status, r.reason_code) for r in result.records}


def test_a_backend_that_skips_the_last_token_is_caught(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BACKENDS["eager"]

    def short(q: torch.Tensor, view: KVView) -> torch.Tensor:
        return real.decode(q, KVView(view.k[:, :, :-1], view.v[:, :, :-1], view.format))

    lie(monkeypatch, "eager", short)
    result = run(model, tmp_path, "decode", backends=("eager",), kv_formats=("fp16",))
    assert reasons(result) == {("invalid", "fewer_tokens")}


def test_a_backend_that_gives_nan_is_caught_and_its_record_can_be_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BACKENDS["eager"]
    lie(monkeypatch, "eager", lambda q, view: real.decode(q, view) * float("nan"))
    result = run(model, tmp_path, "decode", backends=("eager",), kv_formats=("fp16",))
    assert reasons(result) == {("invalid", "wrong_output")}
    assert {r.measured and r.measured.max_error for r in result.records} == {None}


def test_a_backend_that_falls_back_is_caught(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie(monkeypatch, "sdpa-flash", BACKENDS["eager"].decode)
    result = run(model, tmp_path, "decode", backends=("sdpa-flash",), kv_formats=("fp16",))
    assert reasons(result) == {("invalid", "other_kernel")}


def test_a_cell_that_raises_is_a_record_and_the_others_are_measured(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(q: torch.Tensor, view: KVView) -> torch.Tensor:
        raise RuntimeError("two\nlines")

    lie(monkeypatch, "eager", broken)
    result = run(model, tmp_path, "decode", kv_formats=("fp16",))
    by_status = {r.status for r in result.records}
    assert by_status == {"failed", "ok"}
    assert {r.reason for r in result.records if r.status == "failed"} == {"RuntimeError: two lines"}


def test_out_of_memory_is_a_record(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuDevice, "available_bytes", lambda self: 1000)
    result = run(model, tmp_path, "footprint")
    assert reasons(result) == {("oom", "does_not_fit")}
    assert result.manifest.status == "complete"


def test_the_budget_skips_the_rest_and_says_so(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, "footprint", budget_s=0.0)
    assert reasons(result) == {("skipped", "budget")}
    assert result.manifest.status == "incomplete"


def test_an_interrupted_run_keeps_what_it_measured(model: str, tmp_path: Path) -> None:
    def stop(_job: object, _record: object) -> None:
        raise KeyboardInterrupt

    folder = RunFolder.create(tmp_path / "stopped")
    options = jobs.Options(suites=("footprint",), models=(model,), think_tokens=(10,))
    with pytest.raises(KeyboardInterrupt):
        runner.execute(options, CpuDevice(), folder, ["kvgauge"], stop)
    kept = load_run(folder.path)
    assert (kept.manifest.status, len(kept.records)) == ("interrupted", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"profile": "x"}, {"suites": ("x",)}, {"models": ("x",)}, {"kv_formats": ("x",)},
        {"backends": ("x",)}, {"batches": (0,)}, {"think_tokens": (-5,)},
    ],
)  # fmt: skip
def test_an_unknown_name_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        jobs.list_jobs(jobs.Options(**wrong), "cpu")  # type: ignore[arg-type]


def test_a_model_named_twice_is_measured_once() -> None:
    once, twice = (
        jobs.list_jobs(jobs.Options(models=("smollm2-135m",) * n), "cpu").jobs for n in (1, 2)
    )
    assert len(once) == len(twice)


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"seed": 2**63}, {"budget_s": float("nan")}, {"budget_s": -1.0}]
)
def test_an_option_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        jobs.Options(**wrong)  # type: ignore[arg-type]


def test_a_backend_without_pages_is_said_where_pages_were_asked_for() -> None:
    chosen = {"suites": ("decode",), "kv_formats": ("fp16",), "think_tokens": (40,)}
    paged = jobs.list_jobs(jobs.Options(**chosen, page_sizes=(16,)), "cpu")  # type: ignore[arg-type]
    why = paged.left_out["eager in pages"]
    assert why == "reads contiguous caches alone"
    backends = {job.plan.cell.backend for job in paged.jobs if job.plan.cell.page_size}
    assert not {f"{name} in pages" for name in backends} & paged.left_out.keys()
    whole = jobs.list_jobs(jobs.Options(**chosen), "cpu")  # type: ignore[arg-type]
    assert not [name for name in whole.left_out if name.endswith("in pages")]


def test_what_is_measured_by_name_alone_can_run_where_it_is_named() -> None:
    asked = {"suites": ("decode",), "kv_formats": ("fp16",), "think_tokens": (40,)}
    named = jobs.list_jobs(jobs.Options(**asked, backends=("flex-attention",)), "cpu")  # type: ignore[arg-type]
    assert "name it" not in str(named.cannot_run | named.left_out)
    assert not named.left_out  # nothing else was asked for
    plain = jobs.list_jobs(jobs.Options(**asked), "cpu")  # type: ignore[arg-type]
    assert "flex-attention" in plain.left_out


def test_a_backend_that_does_not_read_a_format_is_said_where_both_were_named() -> None:
    asked = {
        "suites": ("decode",),
        "think_tokens": (40,),
        "backends": ("reference", "dequant+sdpa"),
    }
    both = jobs.list_jobs(jobs.Options(**asked, kv_formats=("fp16", "int4")), "cpu")  # type: ignore[arg-type]
    assert both.left_out["dequant+sdpa of fp16"].startswith("it reads fp8_e4m3, ")
    assert [*both.left_out] == ["dequant+sdpa of fp16"]
    one = jobs.list_jobs(jobs.Options(**asked, kv_formats=("int4",)), "cpu")  # type: ignore[arg-type]
    assert not one.left_out
    model = jobs.Options(suites=("model",), backends=("hf-sdpa",), kv_formats=("fp32", "int8"))
    assert [*jobs.list_jobs(model, "cpu").left_out] == ["hf-sdpa of int8"]


def test_a_suite_without_a_fitting_cell_is_said() -> None:
    listed = jobs.list_jobs(jobs.Options(think_tokens=(10,)), "cpu")
    assert {job.suite.name for job in listed.jobs} == {"footprint", "decode"}
    assert "suite model" in listed.left_out


@pytest.mark.parametrize(
    ("profile", "device", "launches"),
    [
        ("standard", "cuda", {"stream", "graph"}), ("smoke", "cuda", {"stream"}),
        ("standard", "cpu", {"stream"}),
    ],
)  # fmt: skip
def test_a_gpu_is_given_its_work_as_the_profile_says(
    profile: str, device: str, launches: set[str]
) -> None:
    options = jobs.Options(profile=profile, suites=("decode",), backends=("eager",))
    cells = [job.plan.cell for job in jobs.list_jobs(options, device).jobs]
    assert {cell.launch for cell in cells} == launches


def test_the_50k_cell_is_listed_with_its_bytes() -> None:
    options = jobs.Options(profile="standard", models=("llama-3.1-70b",))
    sizes = {
        job.suite.predict(job.plan).kv_bytes
        for job in jobs.list_jobs(options, "cpu").jobs
        if job.plan.cell.suite == "footprint" and job.plan.cell.depth_tokens == 50_000
    }
    assert 16_384_000_000 in sizes


def test_the_smoke_profile_is_what_the_readme_says() -> None:
    listed = jobs.list_jobs(jobs.Options(suites=("decode", "footprint")), "cpu").jobs
    cells = [job.plan.cell for job in listed]
    for suite in ("decode", "footprint"):
        mine = [c for c in cells if c.suite == suite]
        assert len({c.model for c in mine}) >= 3
        assert len({c.depth_tokens for c in mine}) >= 4
        assert {c.kv_format for c in mine} >= {"fp16", "bf16", "int8"}
    assert len({c.backend for c in cells if c.backend}) >= 3
    assert {job.plan.shape.attention for job in listed} == {"gqa"}


def test_the_decode_floor_is_bytes_over_the_probe(model: str, tmp_path: Path) -> None:
    result = run(model, tmp_path, "decode", backends=("eager",), kv_formats=("fp16",))
    for r in result.records:
        moved = 2 * 2 * 2 * 16 * 2 * r.trace.depth_tokens  # layers, K and V, heads, dim, bytes
        flops = 2 * 4 * 2 * 2 * 16 * r.trace.depth_tokens
        assert (r.predicted.moved_bytes, r.predicted.flops) == (moved, flops)
        # Each layer is an operation of its own; with this probe both sides run at 1e12 a second.
        assert r.predicted.floor_s == pytest.approx(max(moved, flops) / 1e12)
