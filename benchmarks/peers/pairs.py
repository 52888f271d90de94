"""A main's work beside that of its peers: who takes part, turns, and the table of what they took.

Each takes its turns in a process of its own (benchmarks/contest.py). Memory is what a process has
at most beyond what torch itself takes, the libraries that the work imports included.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.contest import Build, Contestant, Failed, compete

GIB = 2**30
HEAD = (
    "| | s | ours is, predicted | ours is, measured | GiB | of ours | the same? |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Entry:
    """One that does the work.

    build: as `Contestant` has it; what it tells of itself is shown, so that all are seen to have
    done the same. predicted: how many times faster ours was expected to be, before it was measured;
    None of ours. note: what differs. missing: what it needs and how to get it; empty: nothing.
    """

    name: str
    build: Build
    args: tuple = ()
    predicted: float | None = None
    note: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Pair:
    """The same work by several; the first entry is ours. unit: what one turn's unit is."""

    title: str
    unit: str
    entries: Sequence[Entry]


@dataclass
class Row:
    """What was measured of an entry; ratios above 1 say that ours is faster, or smaller.

    turns: the ratio in each round. same: what it told of its work.
    """

    name: str
    seconds: float
    gib: float
    predicted: float | None = None
    ratio: float | None = None
    turns: list[float] = field(default_factory=list)
    memory_ratio: float | None = None
    same: str = ""
    note: str = ""

    def __str__(self) -> str:
        ratio = of_ours = predicted = ""
        if self.ratio is not None:
            predicted = f"{self.predicted:g} x"
            ratio = f"**{self.ratio:.2f} x** ({min(self.turns):.2f} – {max(self.turns):.2f})"
            of_ours = f"{self.memory_ratio:.2f} x"
        cells = (self.name, f"{self.seconds:.3g}", predicted, ratio, f"{self.gib:.2f}", of_ours)
        return "| " + " | ".join((*cells, self.same)) + " |"


def measure(pair: Pair, rounds: int, num_calls: int) -> list[Row]:
    """Let all entries of a pair that are there take turns.

    Args:
        num_calls: units of work in a turn.
    """
    contestants: list[Contestant] = []
    entries = {entry.name: entry for entry in pair.entries}
    for entry in pair.entries:
        if entry.missing:
            print(f"left out: {entry.name}: {entry.missing}", flush=True)
            continue
        contestant = Contestant(entry.name, entry.build, *entry.args)
        try:
            contestant.await_ready()
            contestants.append(contestant)
        except Failed as failure:
            print(failure, flush=True)
            contestant.end()
    compete(contestants, rounds, num_calls)
    for contestant in contestants:
        contestant.end()
    ours = next((c for c in contestants if entries[c.name].predicted is None), None)
    return [_row(contestant, entries[contestant.name], ours) for contestant in contestants]


def _row(one: Contestant, entry: Entry, ours: Contestant | None) -> Row:
    same = ", ".join(f"{name} {value}" for name, value in one.facts.items())
    row = Row(one.name, 1 / one.rate, one.peak / GIB, same=same, note=entry.note)
    if ours is None or one is ours:
        return row
    turns = [a / b for a, b in zip(ours.rates, one.rates, strict=True)]
    memory = one.peak / ours.peak if ours.peak else float("nan")
    found = dict(predicted=entry.predicted, ratio=statistics.median(turns), turns=turns)
    return dataclasses.replace(row, memory_ratio=memory, **found)


def show(pair: Pair, rows: Sequence[Row]) -> None:
    """Print a pair's table, and under it what its entries have to say."""
    print(f"\n{pair.title}, seconds per {pair.unit}:\n\n{HEAD}")
    for row in rows:
        print(row)
    for row in rows:
        if row.note:
            print(f"- {row.name}: {row.note}")
    print(flush=True)
