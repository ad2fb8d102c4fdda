"""Figures that others read off real engines: the formula gives them to the log's own rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from audit_for_tests import REPORTS, plain, reports
from kvgauge.audit.context import Options
from kvgauge.audit.judge import audit_text
from kvgauge.errors import UserError
from kvgauge.formats import kv_format
from kvgauge.formula.held import Storage, growth_bytes, held_bytes
from kvgauge.shapes.hf import read_config
from kvgauge.shapes.types import ModelShape
from shared_models import FOLDER

SCALE = {"MiB": 2**20, "GiB": 2**30}
REPORTED = reports()
# A review's arithmetic and no log; what it quotes is a sentence.
NO_LOG = frozenset({"review-llama3-70b-32k"})


def test_reports_stand_beside_the_checkout() -> None:
    if not REPORTED:
        pytest.skip(f"no {REPORTS.name} beside the checkout: the field's figures are not checked")


def shapes_of(report: dict[str, Any]) -> list[ModelShape]:
    """The shape from the report's own numbers and, where it names one, from the config."""
    made = [plain(report["layers"], report["kv_heads"], report["head_dim"], report["model"])]
    config = FOLDER / f"{report.get('config', 'none')}.json"
    return [*made, read_config(config)] if config.exists() else made


@pytest.mark.parametrize("report", REPORTED, ids=lambda report: str(report["id"]))
def test_the_formula_gives_the_figure(report: dict[str, Any]) -> None:
    for shape in shapes_of(report):
        storage = Storage(kv_format(report["kv_format"]), None, report["tp"])
        if report["what"] == "pages":
            page = report["page_size"] * growth_bytes(shape, 0, storage)
            printed, step = report["available_bytes_gib"], Fraction(1, 200)
            low, high = (int((Fraction(str(printed)) + s) * 2**30 // page) for s in (-step, step))
            assert low <= report["value"] <= high
            continue
        held = Fraction(held_bytes(shape, report["tokens"], storage))
        halves = {"kv_bytes_total": 1, "k_bytes_per_gpu": 2}[report["what"]]
        computed = held / halves / SCALE[report["unit"].split()[0]]
        assert abs(computed - Fraction(str(report["value"]))) <= Fraction(1, 200), float(computed)


@pytest.mark.parametrize("report", REPORTED, ids=lambda report: str(report["id"]))
def test_the_auditor_agrees_with_the_quote(report: dict[str, Any]) -> None:
    options = Options(tp=report["tp"] if report["tp"] > 1 else None)
    for shape in shapes_of(report):
        if report["id"] in NO_LOG:
            with pytest.raises(UserError, match="no KV-cache line"):
                audit_text(report["quote"].encode(), "quote", shape, options)
            continue
        audit = audit_text(report["quote"].encode(), "quote", shape, options)
        assert audit.count("disagree") == 0, audit.findings
        agreed = {f.logged.replace(",", "") for f in audit.findings if f.verdict == "agree"}
        value = report["value"]
        assert (f"{value:.2f}" if isinstance(value, float) else str(value)) in agreed
