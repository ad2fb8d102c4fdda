"""Cell ids: what they depend on, and that they stay."""

from __future__ import annotations

from dataclasses import replace

from records_for_tests import cell, record, run_of


def test_an_id_is_frozen() -> None:
    """Ids stand in committed baselines and in people's histories: this one must never change."""
    assert cell().cell_id == "885d5819b0462dbf"
    assert cell().series_id("cpu", "Test CPU x2") == "8265e54d0c575750"


def test_every_parameter_makes_another_cell() -> None:
    base = cell()
    others = [
        replace(base, suite="footprint"), replace(base, model="x"), replace(base, shape_id="x"),
        replace(base, kv_format="bf16"), replace(base, think_tokens=1), replace(base, batch=2),
        replace(base, backend="sdpa-math"), replace(base, layers_timed=3),
        replace(base, prompt_tokens=1), replace(base, page_size=16), replace(base, policy="sliding"),
    ]  # fmt: skip
    ids = {c.cell_id for c in [base, *others]}
    assert len(ids) == len(others) + 1


def test_a_series_is_a_cell_on_one_kind_of_hardware() -> None:
    assert cell().series_id("cpu", "A") != cell().series_id("cpu", "B")
    assert cell().series_id("cpu", "A") != cell().series_id("cuda", "A")


def test_the_last_attempt_counts() -> None:
    first, second = record(), replace(record(), attempt=2)
    assert run_of(first, second).latest() == (second,)
