"""The bar, the lines of a log by the clock, the time left, and numbers as they are shown."""

import io
import itertools
import logging
from types import SimpleNamespace

import pytest

from util import progress
from util.progress import Pace, ProgressLine, duration, short, shown


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: add to `clock.now`."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def terminal(monkeypatch):
    """A function that tells what a terminal shows after the last return of the carriage."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stdout=screen))
    return lambda: screen.getvalue().removesuffix("\r\033[K").split("\r")[-1].removesuffix("\033[K")


@pytest.mark.parametrize("columns", [40, 80, 400])
def test_the_bar_stays_on_one_line_of_the_terminal(terminal, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    line = ProgressLine("epoch 3", 10)
    line.update(10, "  ".join(f"term_{i} {i / 7:.4g}" for i in range(20)))
    assert terminal().startswith("epoch 3 ") and len(terminal()) < columns
    assert ("term_19" in terminal()) == (columns == 400)
    assert all(
        part.startswith(("epoch", "term")) and part[-1].isdigit() for part in terminal().split("  ")
    )


def test_the_bar_tells_the_time_left_of_its_part_and_of_the_whole(terminal, clock):
    whole = Pace(1000, 100)  # of which an earlier process has done 100
    line = ProgressLine("epoch 1", 100, whole=whole)
    for step in range(1, 51):
        clock.now += 2
        line.update(step)
    told = "epoch 1 ████···· 50/100  1:40 left, 28:20 in all"  # 50 and 850 times 2 s
    assert terminal().startswith(told)


def test_lines_of_a_log_come_by_the_clock_however_long_steps_take(clock, caplog):
    caplog.set_level(logging.INFO)
    for seconds in (0.01, 1, 45):
        caplog.clear()
        ProgressLine.set_pause(60.0)
        line, at = ProgressLine("epoch 0", 10**6), []
        began = clock.now
        for step in range(1, int(400 / seconds)):
            line.update(step)
            while len(at) < len(caplog.records):
                at.append(clock.now - began)
            clock.now += seconds
        if seconds < 5:
            assert at[:5] == pytest.approx([0, 5, 15, 35, 75], abs=5 * seconds)
        pauses = [b - a for a, b in itertools.pairwise(at)]
        assert at[0] == 0 and max(pauses) <= 60 + seconds and min(pauses[4:]) >= 60


def test_many_short_works_share_the_lines_of_one(clock, caplog):
    caplog.set_level(logging.INFO)
    ProgressLine.set_pause(60.0)
    for epoch in range(100):
        line = ProgressLine(f"epoch {epoch}", 10)
        for step in range(1, 11):
            clock.now += 0.1
            line.update(step, f"loss {step}")
    assert len(caplog.records) == 5  # in 100 seconds
    assert "loss" in caplog.text


def test_the_pace_leaves_out_the_start_and_what_cost_nothing(clock):
    pace = Pace(100)
    assert pace.left() is None
    clock.now += 500  # workers start
    pace.count(1)
    assert pace.left() is None
    for _ in range(9):
        clock.now += 3
        pace.count(1)
    assert pace.left() == pytest.approx(3 * 90)
    pace.pass_over(40)
    assert pace.left() == pytest.approx(3 * 50)
    pace.pass_over(-20)  # a rollback
    assert pace.left() == pytest.approx(3 * 70)


def test_items_are_given_on_and_counted(terminal):
    assert list(shown("abc", "letters", 3)) == ["a", "b", "c"]
    assert "letters ████████ 3/3" in terminal()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (1234.56, "1235"), (123456.7, "123457"), (1e-9, "1e-09"), (7, "7"),
     (2.0, "2"), (1e20, "1e+20"), (float("nan"), "nan"), ("auto", "auto"), (-98765.4, "-98765")],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert short(value) == text


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3599, 3600, 90061)] == [
        "0:00", "1:00", "59:59", "1:00:00", "25:01:01",
    ]  # fmt: skip
