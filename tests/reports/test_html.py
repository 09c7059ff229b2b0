"""The report's page and pictures: self-contained, small, and made of whatever records there are."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bafogpt.reports import html, plot_style, plots
from tests.reports import synthetic
from tests.reports.synthetic import NAME, SyntheticRun, plain, summarise


@pytest.fixture
def drilled(tmp_path: Path) -> SyntheticRun:
    return synthetic.drilled(tmp_path)


@pytest.fixture
def empty(tmp_path: Path) -> SyntheticRun:
    return synthetic.new(tmp_path)


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where a tag is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_needs_nothing_but_itself(drilled: SyntheticRun) -> None:
    text = html.page(summarise(drilled))
    page = Page(text)

    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    references = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in references)
    assert "@import" not in text
    assert set(re.findall(r"url\(([^)]*)\)", text)) <= {f"#{value}" for name, value in page.attributes if name == "id"}
    assert len(text.encode()) < 300_000
    assert page.tags.count("svg") == 1


def test_ids_in_the_page_are_unique_and_defined(drilled: SyntheticRun) -> None:
    attributes = Page(html.page(summarise(drilled))).attributes

    ids = [value for name, value in attributes if name == "id"]

    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in attributes if name == "xlink:href"} <= set(ids)


def test_pictures_hold_text_as_text_and_no_colour_of_one_scheme(drilled: SyntheticRun) -> None:
    text = html.page(summarise(drilled))
    pictures = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))

    for expected in ("✕ fire drill", "resumed from 40 ▸", "replay &amp; hard", "steps 41–120", "training 2.991"):
        assert expected in pictures
    assert re.findall(r"#[0-9a-f]{6}\b", pictures) == []
    assert "var(--train)" in pictures
    assert plot_style.LIGHT.keys() == plot_style.DARK.keys()


def test_the_same_records_give_the_same_page(drilled: SyntheticRun) -> None:
    assert html.page(summarise(drilled)) == html.page(summarise(drilled))


def test_a_lost_sample_stands_out(drilled: SyntheticRun) -> None:
    drilled.metrics(step=121, samples=[1936, 1952], loss=3.0)

    page = Page(html.page(summarise(drilled)))

    assert page.words.count("step 121 begins at sample 1936, not 1920") == 2  # in the facts and in a table
    assert ("class", "bad") in page.attributes


def test_nothing_in_the_records_can_become_markup(drilled: SyntheticRun) -> None:
    evil = "<script>alert('$x_1$')</script>&\"'"
    drilled.event("checkpoint_committed", step=999, note=evil)
    drilled.event(evil)
    drilled.metrics(step=121, samples=[1920, 1936], loss=3.0, stage=evil)
    drilled.save(message=evil, host=evil, git=evil, versions={evil: evil}, job={evil: evil})

    page = Page(html.page(summarise(drilled)))

    assert "script" not in page.tags
    assert evil in page.words


def test_a_long_run_with_many_deaths_stays_small(empty: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    feeds: dict[str, list[str]] = {"events": [], "metrics": []}
    monkeypatch.setattr(empty, "_append", lambda feed, line: feeds[feed].append(json.dumps(line)))
    empty.begin()
    for life in range(50):
        empty.start(life * 80)
        empty.train(life * 80 + 1, life * 80 + 90)
        empty.event("trainers_died", why="rank 0 was killed by SIGKILL " + "x" * 5000)
    for feed, lines in feeds.items():
        empty.store.folder(NAME).put(f"{feed}/0001-00000.jsonl", "\n".join(lines).encode())
    empty.save(steps=4090, step=4090)
    summary = summarise(empty)

    assert (len(summary.interruptions), summary.redone_steps) == (50, 490)
    assert len(html.page(summary).encode()) < 300_000


def no_metrics(run: SyntheticRun) -> None:
    run.begin()


def no_records(run: SyntheticRun) -> None:
    pass


def one_step(run: SyntheticRun) -> None:
    run.begin()
    run.start(0)
    run.train(1, 1)


def loss_is_nan(run: SyntheticRun) -> None:
    run.start(0)
    run.train(1, 5)
    run.metrics(step=6, samples=[80, 96], loss=math.nan, tokens_per_s=math.inf, mfu=math.nan, stage="x")


def every_loss_is_nan(run: SyntheticRun) -> None:
    for step in range(1, 4):
        run.metrics(step=step, loss=math.nan, learning_rate=math.nan)
    run.metrics(step=3, validation_loss=math.nan)


def no_checkpoint(run: SyntheticRun) -> None:
    run.begin()
    run.start(0)
    run.train(1, 19)
    run.end("succeeded")


def only_validation(run: SyntheticRun) -> None:
    run.metrics(step=20, validation_loss=3.0)


def wrong_types(run: SyntheticRun) -> None:
    run.event("trainers_started", step="many")
    run.event("trainers_died", why=None)
    run.event("drill_kill")
    run.event("checkpoint_restored")
    run.event("checkpoint_committed", step=None, bytes="big", seconds=[])
    run.event("checkpoint_committed", step=5)
    run.metrics(step="one", loss=1.0)
    run.metrics(step=2, loss="low", samples="all", stage=7, tokens=None)
    run.metrics(step=3, loss=2.0, samples=[0.5, 1], stage=None, tokens_per_s=0, mfu=-1)
    run.metrics(step=0, loss=2.0, samples=[0, 0])


def no_calendar_time(run: SyntheticRun) -> None:
    run.clock = 1e300
    run.event("trainers_started", step=0)
    run.metrics(step=1, loss=1.0)
    run._append("events", {"event": "run_ended"})
    run._append("events", {"time": "noon", "event": "run_ended"})


@pytest.mark.parametrize(
    "records",
    [
        no_records,
        no_metrics,
        one_step,
        loss_is_nan,
        every_loss_is_nan,
        no_checkpoint,
        only_validation,
        wrong_types,
        no_calendar_time,
    ],
)
@pytest.mark.filterwarnings("error")
def test_odd_records_still_make_a_report(
    empty: SyntheticRun, tmp_path: Path, records: Callable[[SyntheticRun], None]
) -> None:
    records(empty)
    empty.save(step=0, message="\ud800", created="never")

    html.store(empty.store, NAME)
    summary = summarise(empty)
    plots.figure_png(summary, tmp_path / "figure.png")

    assert Page(empty.store.folder(NAME).get(html.FILE).decode()).tags
    assert NAME in plain(summary, zar_per_usd=18.0)
    json.dumps(summary.to_dict(), allow_nan=False)


def test_without_matplotlib_the_page_says_why_it_has_no_pictures(
    drilled: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    html.store(drilled.store, NAME)

    page = Page(drilled.store.folder(NAME).get("report.html").decode())
    assert "svg" not in page.tags
    assert "matplotlib was not installed" in page.words
    assert "fire drill" in page.words


def test_the_picture_for_a_readme_is_a_png(drilled: SyntheticRun, tmp_path: Path) -> None:
    plots.figure_png(summarise(drilled), tmp_path / "run.png")

    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_thinned_line_keeps_its_peaks_and_its_ends() -> None:
    ys = [0.0] * 10_000
    ys[1234], ys[7777], ys[-1] = 9.0, -9.0, 1.0
    ys[42] = math.nan

    xs, kept = plot_style.thinned(list(range(10_000)), ys)

    assert len(xs) <= plot_style.POINTS + 1
    assert (9.0 in kept, -9.0 in kept, xs[-1], kept[-1]) == (True, True, 9999, 1.0)
    assert xs == sorted(xs)


def test_labels_that_would_touch_are_moved_apart() -> None:
    assert plot_style.apart([0.5, 0.52, 0.1], least=0.06) == pytest.approx([0.48, 0.54, 0.1])
