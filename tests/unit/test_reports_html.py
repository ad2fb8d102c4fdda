"""The HTML file: whole, alone, escaped, and with every number of the records."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from kvgauge.errors import UserError
from kvgauge.schema import Run
from kvgauge_reports.html import render_html
from kvgauge_reports.sections import make_document
from runs_for_tests import GPU, empty_run, hostile_run, make_run, troubled_run

for package in ("jinja2", "matplotlib", "pandas"):
    pytest.importorskip(package)

VOID = {"meta", "link", "img", "source", "br"}


class Page(HTMLParser):
    """Tags with attributes, ids, text, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [a["id"] or "" for _, a in self.tags if "id" in a]


def page_of(*runs: Run) -> tuple[str, Page]:
    html = render_html(make_document(runs))
    page = Page(html)
    assert page.open == []
    return html, page


@pytest.fixture(scope="module")
def troubled() -> tuple[str, Page]:
    return page_of(troubled_run())


@pytest.fixture(scope="module")
def hostile() -> tuple[str, Page]:
    return page_of(hostile_run())


def test_every_record_has_one_row_with_its_anchor(troubled: tuple[str, Page]) -> None:
    ids = troubled[1].ids()
    assert len(ids) == len(set(ids))
    for record in troubled_run().latest():
        assert f"cell-{record.cell_id}" in ids


def test_links_inside_the_page_lead_somewhere(troubled: tuple[str, Page]) -> None:
    page = troubled[1]
    ids = set(page.ids())
    for tag, attributes in page.tags:
        if tag == "a":
            href = attributes["href"] or ""
            assert href.startswith("#")
            assert href[1:] in ids


def test_a_cpu_run_says_so_and_troubles_have_reasons(troubled: tuple[str, Page]) -> None:
    text = troubled[1].text
    assert "CPU run" in text
    assert "no GPU was used" in text
    for reason in (
        "wrong_output",
        "does_not_fit",
        "head_dim 96",
        "budget of 60 s",
        "wide_interval",
    ):
        assert reason in text
    assert "no CUDA device" in text
    assert "never reached" in text


def test_numbers_of_a_record_are_on_the_page() -> None:
    run = make_run(GPU)
    text = page_of(run)[1].text
    assert "no GPU was used" not in text
    record = next(r for r in run.records if r.scope == "attention")
    assert record.measured
    assert record.measured.time_s
    assert f"{record.measured.time_s.median * 1e3:.4g}".rstrip("0") in text
    assert "2,684,354,560" in text
    assert "327,680" in text


def test_headings_are_in_order_and_tables_have_scopes(troubled: tuple[str, Page]) -> None:
    levels = [int(tag[1]) for tag, _ in troubled[1].tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(a.get("scope") for tag, a in troubled[1].tags if tag == "th")
    assert all(a.get("alt") for tag, a in troubled[1].tags if tag == "img")


def test_nothing_is_loaded_and_nothing_runs(hostile: tuple[str, Page]) -> None:
    html, page = hostile
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "svg"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "srcset", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    policy = [a.get("content") or "" for t, a in page.tags if a.get("http-equiv")]
    assert policy[0].startswith("default-src 'none'; img-src data:;")
    assert "url(" not in html
    assert "@import" not in html


def test_hostile_strings_are_shown_bounded_and_harmless(hostile: tuple[str, Page]) -> None:
    html, page = hostile
    assert "<script>alert(1)</script>" in page.text
    assert "&lt;script&gt;alert(1)" in html
    assert "<script" not in html
    assert "{{ 7 * 7 }}" in page.text
    assert "N" * 400 not in page.text
    assert not any(ord(c) < 32 and c != "\n" for c in html)
    assert "\u202e" not in html
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", each) for each in ids)
    html.encode()  # no lone surrogate is left


def test_an_empty_run_says_so() -> None:
    _, page = page_of(empty_run())
    assert "No figure can be given: no cell of this run was measured and trusted" in page.text
    assert "img" not in {tag for tag, _ in page.tags}


def test_several_runs_have_a_section_each_and_ids_apart() -> None:
    _, page = page_of(make_run(GPU), troubled_run())
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert {"run1", "run2"} <= set(ids)
    assert "GPU run" in page.text
    assert "CPU run" in page.text


def test_no_run_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="at least one run"):
        make_document([])
