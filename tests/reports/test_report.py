"""What a run's report says, from records that a supervisor would have left."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bafogpt.core.errors import RunNotFoundError
from bafogpt.reports import formatting
from bafogpt.reports import summary as summaries
from bafogpt.reports.terminal import HEIGHT, WIDTH, loss_chart
from tests.reports import synthetic
from tests.reports.synthetic import NAME, SyntheticRun, plain, summarise


@pytest.fixture
def drilled(tmp_path: Path) -> SyntheticRun:
    return synthetic.drilled(tmp_path)


@pytest.fixture
def empty(tmp_path: Path) -> SyntheticRun:
    return synthetic.new(tmp_path)


def test_a_killed_and_resumed_run_is_told_as_it_was(drilled: SyntheticRun) -> None:
    summary = summarise(drilled)

    assert [(each.ended, each.last_step) for each in summary.interruptions] == [("drill", 51)]
    assert [(resume.step, resume.samples) for resume in summary.resumes] == [(40, 640)]
    assert [(each.first_step, each.last_step, each.ended) for each in summary.worker_spans] == [
        (0, 51, "drill"),
        (40, 120, "succeeded"),
    ]
    assert summary.redone_steps == 11
    assert [[line["step"] for line in lost] for lost in summary.superseded] == [list(range(40, 52))]
    assert [point["step"] for point in summary.curve] == list(range(1, 121))
    assert summary.problems == []
    assert summary.samples == 120 * synthetic.BATCH_SAMPLES
    assert summary.tokens == 120 * synthetic.BATCH_SAMPLES * synthetic.SEQUENCE_LENGTH


def test_the_later_line_of_a_step_done_twice_counts(drilled: SyntheticRun) -> None:
    drilled.metrics(step=120, samples=[1904, 1920], loss=1.5, tokens=245_760)
    drilled.metrics(step=120, validation_loss=2.5)

    summary = summarise(drilled)

    assert summary.final_loss == 1.5
    assert summary.best_validation == (120, 2.5)
    assert summary.redone_steps == 12


def test_work_done_again_is_counted_in_steps_when_lines_cover_several(empty: SyntheticRun) -> None:
    for first, last in ((0, 10), (10, 20), (15, 20), (20, 30)):  # lines every 10 steps, resumed at step 15
        empty.metrics(step=last, samples=[first * 4, last * 4], loss=1.0)
    empty.save(step=30, steps=30)

    assert summarise(empty).redone_steps == 5


def test_checkpoints_of_the_events_and_of_the_bucket_are_one_list(drilled: SyntheticRun) -> None:
    drilled.checkpoint(130)  # its supervisor was lost before it could say so

    checkpoints = summarise(drilled).checkpoints

    assert [(each.step, each.kept) for each in checkpoints] == [
        (20, False),
        (40, False),
        (60, False),
        (80, False),
        (100, True),
        (120, True),
        (130, True),
    ]
    assert (checkpoints[0].bytes, checkpoints[0].seconds) == (13_112_000, 0.62)
    assert (checkpoints[-1].bytes, checkpoints[-1].seconds) == (1130, None)


def test_a_machine_that_went_silent_is_a_kill_and_its_time_is_paid(empty: SyntheticRun) -> None:
    empty.begin()
    empty.start(0)
    empty.train(1, 47)
    last_word = empty.clock
    empty.account()
    empty.attempt, empty.clock = 2, empty.clock + 3600
    begin = empty.clock
    empty.begin()
    empty.start(40)
    empty.train(41, 60)
    empty.account(started=begin)
    empty.save(state="running", step=60, attempts=2)

    summary = summarise(empty)

    assert [(each.ended, each.last_step, each.end) for each in summary.interruptions] == [("lost", 47, last_word)]
    assert [each.ended for each in summary.worker_spans] == ["lost", "running"]
    worked = last_word - synthetic.BEGIN + empty.clock - begin
    assert summary.usage.hours == pytest.approx(worked / 3600)


def test_trainers_that_crash_by_themselves_are_not_called_killed(empty: SyntheticRun) -> None:
    empty.begin()
    empty.start(0)
    empty.event("trainers_died", exit_codes=[1], why="rank 0 ended with exit code 1")
    empty.end("failed", "gave up")
    empty.save(state="failed", step=0)

    summary = summarise(empty)

    assert [(each.ended, each.last_step) for each in summary.interruptions] == [("crashed", None)]
    assert "crashed" in plain(summary)


def test_a_lost_sample_is_said_on_the_terminal_and_in_json(drilled: SyntheticRun) -> None:
    drilled.metrics(step=121, samples=[1936, 1952], loss=3.0)
    summary = summarise(drilled)
    problem = "step 121 begins at sample 1936, not 1920"

    assert summary.problems == [problem]
    assert summary.to_dict()["sample_problems"] == [problem]
    assert f"NOT in order: {problem}" in plain(summary)


def test_the_terminal_text_tells_the_run_without_a_terminal(drilled: SyntheticRun) -> None:
    text = plain(summarise(drilled), zar_per_usd=18.0)

    assert "\x1b" not in text
    for expected in (
        f"{NAME}  succeeded",
        "120 steps · 245,760 tokens · 2 min 00 s of training",
        "5.506 → 2.991",
        "1,920, each once and in order",
        "fire drill after step 51",
        "from step 40; 11 steps repeated",
        "6 committed, 13.1 MB each; steps 100, 120 in the bucket",
        "$0.05 (R0.88)",
        "git 0123456789+dirty",
    ):
        assert expected in text
    chart = text.splitlines()
    marks = next(line for line in chart if "✕" in line)
    assert marks.index("▸") < marks.index("✕")
    assert max(map(len, chart)) <= 80


def test_the_small_chart_falls_where_the_loss_falls() -> None:
    rows = [row.ljust(WIDTH) for _, row in loss_chart([(step, 1000.0 - step) for step in range(1, 601)])]

    heights = [sum(row[column] != " " for row in rows) for column in range(WIDTH)]

    assert heights == sorted(heights, reverse=True)
    assert heights[0] == HEIGHT
    assert heights[-1] == 1


def test_an_unknown_run_is_named(drilled: SyntheticRun) -> None:
    with pytest.raises(RunNotFoundError, match=f"did you mean '{NAME}'"):
        summaries.summarise(drilled.store, "zulu-smoke-3f2b")


def test_json_holds_the_record_and_what_is_derived(drilled: SyntheticRun) -> None:
    summary = summarise(drilled)
    values = json.loads(json.dumps(summary.to_dict(), allow_nan=False))

    assert values.items() >= {"name": NAME, "state": "succeeded", "redone_steps": 11, "samples": 1920}.items()
    assert values["interruptions"][0]["ended"] == "drill"
    assert values["best_validation"]["step"] == 120
    assert values.keys() >= {field.name for field in dataclasses.fields(summary.record)}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0.62, "0.6 s"),
        (9.97, "10 s"),
        (59.7, "1 min 00 s"),
        (134, "2 min 14 s"),
        (3599.9, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (190_000, "2 d 4 h"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (999_999, "1 MB"), (13_112_000, "13.1 MB"), (32e12, "32 TB")]
)
def test_sizes_are_read_at_a_glance(count: float, text: str) -> None:
    assert formatting.size(count) == text


def test_importing_the_report_loads_nothing_heavy() -> None:
    script = "import sys, bafogpt.reports.html; print({'matplotlib', 'numpy', 'torch', 'rich'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "set()"
