"""Sweeps and comparisons: what their words mean, and what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from faults.test_cli_faults import kvgauge
from kvgauge import plan_command
from kvgauge.api import PlanOptions
from kvgauge.errors import UserError
from kvgauge.plan_command import Views
from kvgauge.traces.axis import Axis, parse_axis
from kvgauge.variants import parse_variants, reserve_bytes_of

MODEL = "llama-3.1-8b"
OPTIONS: PlanOptions = {"think": 1000, "gpu": "L4"}


@pytest.mark.parametrize(
    ("text", "values"),
    [("think=1k:8k", (1024, 2048, 4096, 8192)), ("batch=1:6", (1, 2, 4, 6)), ("tp=2:2", (2,)),
     ("think=500,2k,1m", (500, 2048, 1024**2))],
)  # fmt: skip
def test_an_axis(text: str, values: tuple[int, ...]) -> None:
    assert parse_axis(text) == Axis(text.partition("=")[0], values)


@pytest.mark.parametrize(
    "text",
    ["", "think", "think=", "think=8:1", "think=0:8", "think=1:2:3", "think=x:9", "gpu=1:2",
     "think=-1:4", "think=1e3:2e3", "think=9999999999999999", "think=1:", f"batch={'1,' * 65}1"],
)  # fmt: skip
def test_an_absurd_axis_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_axis(text)


def test_variants_are_told_apart() -> None:
    found = parse_variants(["int8,H200", "qwen3-8b", "gpu=L40S+tp=2+reserve-gb=1.5"])
    assert [variant.changes for variant in found] == [
        {"kv_format": "int8"}, {"gpu": "H200"}, {"model": "qwen3-8b"},
        {"gpu": "L40S", "tp": 2, "reserve_bytes": 1_500_000_000},
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "int8,", "x=1", "tp=two", "utilization=much", "a," * 13])
def test_a_wrong_variant_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_variants([text])


@pytest.mark.parametrize("gb", [-0.1, float("nan"), float("inf"), 1e9])
def test_a_wrong_reserve_is_refused(gb: float) -> None:
    with pytest.raises(UserError, match="reserve"):
        reserve_bytes_of(gb)


def as_json(views: Views) -> dict[str, Any]:
    documents: list[dict[str, Any]] = []
    plan_command.run(MODEL, OPTIONS, views, documents.append)
    (document,) = documents
    plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return plain


def test_views_as_json() -> None:
    swept = as_json(Views(sweep="think=1k:4k"))
    assert [p["tokens"] for p in swept["plans"]] == swept["sweep"]["values"] == [1024, 2048, 4096]
    compared = as_json(Views(compare=("int8", "smollm2-135m")))
    assert compared["labels"] == ["as asked", "int8", "smollm2-135m"]
    assert [p["model"] for p in compared["plans"]] == [MODEL, MODEL, "smollm2-135m"]
    assert compared["plans"][1]["kv_format"] == "int8"
    one = as_json(Views(explain=True, fit=True))
    assert one["fit"]["most_requests"] == one["max_concurrent_requests"]
    assert one["explain"][0] == "Tokens"


def test_views_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    for views, says in (
        (Views(sweep="batch=1,8"), "########"),
        (Views(sweep="batch=1,8"), "KV of the batch, drawn"),
        (Views(compare=("int8", "h100")), "1 x H100-SXM"),
        (Views(explain=True, fit=True), "longest trace"),
    ):
        plan_command.run(MODEL, OPTIONS, views, None)
        printed = capsys.readouterr().out
        assert says in printed
        assert "not modelled" in printed
    plan_command.run("llama-3.1-70b", OPTIONS, Views(), None)
    assert "does not fit" in capsys.readouterr().out


def test_a_plan_without_thinking_tokens_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    none, some, thought = PlanOptions(prompt=9), PlanOptions(think=9), Views(sweep="think=0,9")
    for options, views, says in (
        (none, Views(), True), (some, Views(), False), (none, Views(sweep="batch=1,8"), True),
        (none, thought, False), (none, Views(compare=("int8",)), True),
    ):  # fmt: skip
        plan_command.run(MODEL, options, views, None)
        assert ("no thinking tokens were asked for" in capsys.readouterr().out) is says


@pytest.mark.parametrize(
    "label", ["gpu=H200+gpu=H100", "H200+gpu=H200", "int8+kv-format=int4", "tp=2+batch=8+tp=4"]
)
def test_a_column_says_a_setting_once(label: str) -> None:
    with pytest.raises(UserError, match="is said twice"):
        parse_variants(["int8", label])


def test_one_sweep_at_a_time() -> None:
    done = kvgauge("plan", MODEL, "--sweep", "think=1k:4k", "--sweep", "batch=1,8")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "kvgauge: --sweep given 2 times: one --sweep at a time"
    assert kvgauge("plan", MODEL, "--sweep", "batch=1,8").returncode == 0


def test_tables_do_not_mix() -> None:
    with pytest.raises(UserError, match="table of its own"):
        plan_command.run(MODEL, OPTIONS, Views(sweep="tp=1", compare=("int8",)), None)
    with pytest.raises(UserError, match="table of its own"):
        plan_command.run(MODEL, OPTIONS, Views(explain=True, compare=("int8",)), None)
