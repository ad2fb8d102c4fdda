"""A cell measured again from its record alone; a record that was edited is refused, never trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvgauge import rerun, runner
from kvgauge.devices.cpu import CpuDevice
from kvgauge.errors import UserError
from kvgauge.schema import DeviceRef
from kvgauge.store.folder import RunFolder
from kvgauge.store.reader import load_run
from records_for_tests import record, run_of
from unit.test_resume import cli
from unit.test_runner import TINY, NoProbe

Json = dict[str, Any]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a footprint and a decode cell."""
    tmp_path = tmp_path_factory.mktemp("measured")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_probe", lambda _device: NoProbe())
        # A fixture of a module is made before the one that keeps a busy machine from repeating cells.
        patch.setattr(runner, "_REPEAT_SHARE", -1.0)
        cli("run", "--suite", "footprint", "--suite", "decode", "--model", str(tmp_path),
            "--think", "40", "--kv-format", "fp16", "--backend", "eager", "--device", "cpu",
            "--seed", "7", "--run-dir", str(tmp_path / "run"))  # fmt: skip
    # The record must be enough.
    (tmp_path / "config.json").unlink()
    return tmp_path / "run"


@pytest.fixture
def run_dir(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it."""
    monkeypatch.setattr(runner, "make_probe", lambda _device: NoProbe())
    shutil.copytree(measured, tmp_path / "run")
    return tmp_path / "run"


def again(run_dir: Path, cell: str, *more: str) -> int:
    return cli("rerun", str(run_dir), cell, "--run-dir", str(run_dir.parent / "again"), *more)


def edit(run_dir: Path, line: int, change: Any) -> str:
    """Change one record as a hand would; its cell's id afterwards."""
    path = run_dir / "records.jsonl"
    lines = path.read_text().splitlines()
    one = json.loads(lines[line])
    change(one)
    lines[line] = json.dumps(one)
    path.write_text("\n".join(lines) + "\n")
    return str(one["cell_id"])


def test_a_cell_is_measured_again_as_it_was(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for before in load_run(run_dir).records:
        new = run_dir.parent / before.suite
        capsys.readouterr()
        assert cli("rerun", str(run_dir), before.cell_id[:4], "--run-dir", str(new), "--json") == 0
        said = json.loads(capsys.readouterr().out)
        run = load_run(new)
        (after,) = run.records
        assert run.manifest.status == "complete"
        for name in (
            "cell",
            "cell_id",
            "series_id",
            "shape",
            "seed",
            "criterion",
            "model",
            "trace",
        ):
            assert getattr(after, name) == getattr(before, name)
        assert before.measured is not None
        assert said["before"]["kv_bytes"] == said["after"]["kv_bytes"] == before.measured.kv_bytes
        assert said["comparable"] is True
        old, now = said["before"]["time_s"], said["after"]["time_s"]
        if before.suite == "footprint":
            assert (old, now, said["time_ratio"]) == (None, None, None)
        else:
            disturbed = before.trust.flags or after.trust.flags
            assert said["time_ratio"] == (None if disturbed else now["median"] / old["median"])
            assert old["low"] <= old["median"] <= old["high"]


def test_people_see_both_side_by_side(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decode = load_run(run_dir).records[1]
    assert again(run_dir, decode.cell_id) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if " to " in line]) == 2
    assert "after / before" in out or "was disturbed" in out


def test_another_device_is_measured_and_said_not_comparable(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = edit(run_dir, 1, lambda one: one["device"].update(name="Abacus"))
    assert again(run_dir, cell) == 3
    said = capsys.readouterr()
    assert "after / before" not in said.out
    assert "the times do not" in said.err
    assert len(load_run(run_dir.parent / "again").records) == 1


def test_a_name_must_name_one_cell(run_dir: Path) -> None:
    first = load_run(run_dir).records[0]
    for name, says in (
        ("", "at least 4"),
        (first.cell_id[:3], "at least 4"),
        ("xxxx", "no record"),
    ):
        with pytest.raises(UserError, match=says):
            again(run_dir, name)
    twin = edit(run_dir, 1, lambda one: one.update(cell_id=first.cell_id[:8] + "0" * 8))
    with pytest.raises(UserError, match="2 ids begin so") as caught:
        again(run_dir, first.cell_id[:6])
    assert first.cell_id in str(caught.value)
    assert twin in str(caught.value)


def test_a_record_of_an_older_kvgauge_says_too_little(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.write_manifest(run_of(record()).manifest)
        folder.append(record())
    with pytest.raises(UserError, match="older kvgauge"):
        again(tmp_path / "run", record().cell_id)
    assert not (tmp_path / "again").exists()


def _cell(**changes: object) -> Any:
    """An edit that keeps the record's names in step, as one who means harm would."""

    def change(one: Json) -> None:
        from kvgauge.schema import Cell

        one["cell"].update(changes)
        one["cell_id"] = Cell(**one["cell"]).cell_id

    return change


def _layer(**changes: object) -> Any:
    def change(one: Json) -> None:
        from kvgauge.schema import ShapeRef
        from kvgauge.store.reader import convert

        one["shape"]["layers"][0]["layer"].update(changes)
        shape = convert(one["shape"], ShapeRef, "").shape("x")
        _cell(shape_id=shape.shape_id)(one)

    return change


def _layers(count: int) -> Any:
    return lambda one: one["shape"]["layers"][0].update(count=count)


def _criterion(**changes: object) -> Any:
    return lambda one: one["criterion"].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # The cell was edited and the id was not, or the shape under it.
        (lambda one: one["cell"].update(think_tokens=41), "does not describe the cell"),
        (_layers(4), "does not describe the cell"),
        (lambda one: one["shape"].update(hidden=65), "does not describe the cell"),
        (lambda one: one.update(cell_id="0123456789abcdef"), "does not describe the cell"),
        # Both were.
        (_cell(suite="training"), "suite training"),
        (_cell(kv_format="q8_0"), "KV format q8_0"),
        (_cell(kv_format="x" * 5000), "KV format xxx"),
        (_cell(backend="no-such"), "cannot measure here"),
        (_cell(backend="reference\n"), "cannot measure here"),
        (_cell(backend=None), "cannot measure here"),
        (_cell(scope="engine"), "cannot measure here"),
        (_cell(layout="paged"), "cannot measure here"),
        (_cell(page_size=16), "cannot measure here"),
        (_cell(layout="paged", page_size=0), "pages of 0 tokens"),
        (_cell(layout="paged", page_size=-16), "pages of -16 tokens"),
        (_cell(layout="paged", page_size=10**9), "pages of 1000000000 tokens"),
        (_cell(policy="sinks"), "cannot measure here"),
        (_cell(model="a\nb"), "cannot measure here"),
        (_cell(layers_timed=0), "layers timed"),
        (_cell(layers_timed=-1), "layers timed"),
        (_cell(layers_timed=10**6), "cannot measure here"),
        (_cell(layers_timed=None), "cannot measure here"),
        (_cell(batch=0), "batch 0"),
        (_cell(batch=-(10**15)), "batch -1"),
        (_cell(batch=10**12), "are available"),
        (_cell(think_tokens=0), "0 tokens"),
        (_cell(think_tokens=-5), "-5 tokens"),
        (_cell(prompt_tokens=-1), "prompt_tokens=-1"),
        (_cell(think_tokens=10**9), "are available"),
        (_cell(think_tokens=10**18), "think_tokens"),
        (_layer(q_heads=2**24), "are available"),
        (_layer(k_dim=2**24), "are available"),
        (lambda one: one["shape"]["layers"][0]["layer"].update(kv_heads=3), "not a multiple"),
        (_layers(10**9), "10000 layers"),
        (_layers(-1), "0 layers"),
        (_criterion(min_samples=10**9), "criterion"),
        (_criterion(min_samples=0), "criterion"),
        (_criterion(max_samples=1), "criterion"),
        (_criterion(budget_s=1e20), "criterion"),
        (_criterion(budget_s=-1.0), "criterion"),
        (_criterion(max_warm_up=0), "criterion"),
        (_criterion(max_warm_up=10**9), "criterion"),
        (_criterion(target_half_width=0.0), "criterion"),
        (lambda one: one.update(seed=-1), "seed"),
        (lambda one: one.update(seed=2**63), "seed"),
        (lambda one: one["shape"].update(layers=[]), "0 layers"),
    ],
)
def test_a_hostile_record_is_one_line_and_measures_nothing(
    run_dir: Path, change: Any, says: str
) -> None:
    cell = edit(run_dir, 1, change)
    with pytest.raises(UserError) as caught:
        again(run_dir, cell)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not (run_dir.parent / "again").exists()


class Elsewhere(CpuDevice):
    """Another kind of CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.ref = DeviceRef("cpu", "Elsewhere", None)


def test_a_failed_cell_is_measured_again_too(run_dir: Path, tmp_path: Path) -> None:
    def fail(one: Json) -> None:
        one.update(status="failed", reason_code="exception", reason="no", measured=None, ratio=None)

    cell = edit(run_dir, 1, fail)
    before = rerun.record_named(load_run(run_dir), cell)
    with RunFolder.create(tmp_path / "new") as folder:
        result = rerun.rerun(before, Elsewhere(), folder, ["kvgauge", "rerun"])
    assert (result.before.status, result.after.status) == ("failed", "ok")
    assert (result.comparable, result.time_ratio) == (False, None)
