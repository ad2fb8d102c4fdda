"""`kvgauge tune-kernels`: what is timed, what is kept, what is read again. No GPU: its clock is scripted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from kvgauge import cli, tune
from kvgauge.devices.types import Device
from kvgauge.errors import UserError
from kvgauge_kernels import BACKENDS, KVView, oracle_decode
from kvgauge_kernels.audit.cases import SPLIT, Case
from kvgauge_kernels.audit.targets import TARGETS, Target
from kvgauge_kernels.triton import configs, tuned
from triton_for_tests import needs_triton

pytestmark = needs_triton
CPU, GPU = torch.device("cpu"), "NVIDIA Stand-In"
ROOM = configs.Room(configs.SHARED_BYTES[90])
CACHE = tuned.Cache("bf16", 64, 64, paged=False)
ENTRY = configs.choose_for(ROOM, "bf16", 64, 64, paged=False)
FASTEST = next(c for c in tuned.candidates(ENTRY) if c.block_n < ENTRY.block_n)


class Clock:
    """Seconds by the configuration that is on trial; and what was launched."""

    torch_device = CPU

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.timed_names = seconds, list[str]()

    def timed(self, step: Callable[[], object]) -> float:
        step()
        name = tuned.named(tuned._trial[-1])
        self.timed_names.append(name)
        return self.seconds.get(name, 1.0)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A GPU's name, an empty cache folder, and the oracle in the place of the kernels."""
    triton = type(BACKENDS["triton"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = SimpleNamespace(name=GPU, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: facts)
    monkeypatch.setattr(triton, "available", lambda _self, _device: None)
    monkeypatch.setattr(triton, "decode", lambda _self, q, view: oracle_decode(q, view).to(q.dtype))
    monkeypatch.setattr(tune, "PAGE_SIZES", (0,))
    tuned._kept.cache_clear()


def tuning(
    seconds: dict[str, float], faults: Callable[[Case, Target], Sequence[str]] | None = None
) -> tuple[tune.Report, Clock]:
    clock = Clock(seconds)
    report = tune.tune(
        cast(Device, clock), ("bf16",), (64,), sizes=((1, 48), (2, 32)),
        faults=faults or (lambda _case, _target: ()),
    )  # fmt: skip
    return report, clock


def test_the_best_is_kept_and_taken() -> None:
    report, clock = tuning({tuned.named(FASTEST): 0.5})
    assert report.rows[0].chosen == tuned.named(FASTEST)
    assert report.rows[0].times_the_table[tuned.named(FASTEST)] == pytest.approx(0.5)
    choices, note = tuned.load(GPU)
    assert note == "table"
    assert choices[CACHE].block_n == FASTEST.block_n
    # They take turns: no candidate's times lie together.
    count = len(report.rows[0].times_the_table)
    assert len(set(clock.timed_names[:count])) == count > 9
    assert any("0.500 of the table's time" in line for line in report.lines())


def test_a_small_gain_keeps_the_table() -> None:
    report, _ = tuning({tuned.named(FASTEST): 0.98})
    assert report.rows[0].chosen == tuned.named(ENTRY)
    assert tuned.load(GPU) == ({}, "table")


def test_what_the_audit_refuses_is_never_launched() -> None:
    asked = []

    def spills(case: Case, target: Target) -> Sequence[str]:
        asked.append((case.alternate, target.name))
        return ("spills: 4 instructions",) if case.alternate == FASTEST else ()

    report, clock = tuning({tuned.named(FASTEST): 0.1}, spills)
    assert (FASTEST, "sm_90") in asked
    assert report.rows[0].refused == {tuned.named(FASTEST): "spills: 4 instructions"}
    assert tuned.named(FASTEST) not in clock.timed_names


def test_a_wrong_or_failing_candidate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad(_self: Any, q: torch.Tensor, view: KVView) -> torch.Tensor:
        config = tuned._trial[-1]
        if config.block_n > ENTRY.block_n:
            raise RuntimeError("out of\nshared memory")
        off = 2.0 if config == FASTEST else 1.0
        return off * oracle_decode(q, view).to(q.dtype)

    monkeypatch.setattr(type(BACKENDS["triton"]), "decode", bad)
    report, clock = tuning({tuned.named(FASTEST): 0.1})
    refused = report.rows[0].refused
    assert "against the float64 oracle" in refused[tuned.named(FASTEST)]
    assert "RuntimeError: out of shared memory" in refused.values()
    assert not set(refused) & set(clock.timed_names)


def test_a_table_that_fails_itself_is_not_compared_with() -> None:
    report, clock = tuning({}, lambda case, _target: ("bad",) if case.alternate == ENTRY else ())
    assert not clock.timed_names
    assert report.rows[0].chosen == tuned.named(ENTRY)


def test_a_launch_takes_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned.config_for(CPU, ROOM, CACHE) == (ENTRY, "table")
    tuning({tuned.named(FASTEST): 0.5})
    monkeypatch.setattr(tuned, "_kept", lambda _device: tuned.load(GPU))
    config, origin = tuned.config_for(CPU, ROOM, CACHE)
    assert (tuned.shape_of(config), origin) == (tuned.shape_of(FASTEST), "tuned")
    assert tuned.config_for(CPU, ROOM, replace(CACHE, k_dim=128)) != (config, "tuned")


def test_tuning_one_cache_keeps_the_choices_of_others() -> None:
    other = tuned.Choice(replace(CACHE, format="int8"), 64, 4, 3, 2, 0.9)
    old = tuned.Choice(CACHE, 32, 4, 3, 2, 0.9)
    tuned.save(GPU, (other, old))
    tuning({})
    assert tuned.load(GPU)[0] == {other.cache: other}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "is not read"),
        ('{"schema": 1}', "is not read"),
        ("[" * 100_000, "is not read"),
        ("x" * (tuned.MAX_BYTES + 1), "is not read: over"),
        ('{"schema": 2, "gpu": "", "triton": "", "sources": "", "choices": []}', "another schema"),
        ('{"schema": 1, "gpu": "L4", "triton": "", "sources": "", "choices": []}', "another GPU"),
    ],
)
def test_a_file_that_is_none_is_ignored_with_a_note(text: str, word: str) -> None:
    path = tuned.path_for(GPU)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    choices, note = tuned.load(GPU)
    assert not choices
    assert note.startswith("table; ")
    assert word in note


@pytest.mark.parametrize(("now", "word"), [(("0.0", ""), "triton"), ((None, "other"), "source")])
def test_other_code_voids_it(
    monkeypatch: pytest.MonkeyPatch, now: tuple[str | None, str], word: str
) -> None:
    tuned.save(GPU, (tuned.Choice(CACHE, 32, 4, 3, 2, 0.9),))
    version, sources = tuned.code_now()
    monkeypatch.setattr(tuned, "code_now", lambda: (now[0] or version, now[1] or sources))
    assert f"is for another {word}" in tuned.load(GPU)[1]


def test_a_shape_that_is_no_candidate_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = tuned.Choice(CACHE, 2**20, 64, 99, 1, 0.1)
    monkeypatch.setattr(tuned, "_kept", lambda _device: ({CACHE: hostile}, "table"))
    config, origin = tuned.config_for(CPU, ROOM, CACHE)
    assert config == ENTRY
    assert "none of the candidates" in origin


def test_the_audit_reads_an_alternate_by_itself() -> None:
    """Two candidates that differ in what is told to the compiler have keys of their own."""
    one, two = (replace(ENTRY, programs_per_sm=n) for n in (1, 2))
    case = Case(SPLIT, "bf16", "bf16", 64, 64)
    keys = {replace(case, alternate=c).key(TARGETS["sm_90"]) for c in (one, two)}
    assert len(keys | {case.key(TARGETS["sm_90"])}) == 3
    assert replace(case, alternate=one).config(TARGETS["sm_90"]) == one


def test_a_real_alternate_is_compiled_and_judged() -> None:
    too_many = replace(ENTRY, num_stages=9, programs_per_sm=4)
    case = Case(SPLIT, "bf16", "bf16", 64, 64, alternate=too_many)
    assert any("programs" in fault for fault in tune.audited_faults(case, TARGETS["sm_90"]))


def test_what_cannot_be_tuned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="triton reads no fp32"):
        tune.tune(cast(Device, Clock({})), ("fp32",), (64,))
    with pytest.raises(UserError, match="multiples of 16"):
        tune.tune(cast(Device, Clock({})), ("bf16",), (40,), sizes=((1, 32),))
    other = SimpleNamespace(name=GPU, major=12, minor=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: other)
    with pytest.raises(UserError, match=r"no audit for capability 12\.1"):
        tune.target_of(CPU)


def test_the_command_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["kvgauge", "tune-kernels"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
