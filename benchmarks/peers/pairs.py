"""A main's work beside that of its peers, and what was predicted of it.

Turns, times and memory are those of benchmarks/peers/turns.py.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.contest import Build, Contestant, memory
from benchmarks.gpu.record import Rows
from benchmarks.peers.turns import Entrant, compared, is_installed, take_turns


@dataclass(frozen=True)
class Entry:
    """One that does the work.

    Args:
        build: what it tells of the work is shown, so that all are seen to have done the same.
        predicted: how many times as long as ours it was expected to take, before any was measured.
        note: what differs from ours.
        needs: packages. missing: what else it lacks, and how one gets it.
    """

    name: str
    build: Build
    args: tuple = ()
    predicted: float | None = None
    note: str = ""
    needs: tuple[str, ...] = ()
    missing: str = ""

    def entrant(self) -> Entrant:
        absent = [name for name in self.needs if not is_installed(name)]
        plan = (self.name, self.build, self.args, not (absent or self.missing))
        return Entrant(*plan, self.missing) if self.missing else Entrant(*plan)


@dataclass(frozen=True)
class Pair:
    """The same work by several; the first entry is ours. unit: what is done in a step."""

    title: str
    unit: str
    entries: Sequence[Entry]

    def measure(self, rounds: int, steps: int) -> list[Contestant]:
        return take_turns([entry.entrant() for entry in self.entries], rounds, steps)

    def rows(self, found: Sequence[Contestant]) -> Rows:
        """The table: what was measured, what was predicted, and what each told of the work."""
        entries = {entry.name: entry for entry in self.entries}
        rows: Rows = []
        for row, one in zip(compared(found, 1, self.unit), found, strict=True):
            predicted = entries[one.name].predicted
            told = [f"{k} {v}" for k, v in one.facts.items() if k != "libraries"]
            rows.append(row | {"predicted": predicted or "", "the work": ", ".join(told)})
        return rows

    def notes(self) -> list[str]:
        return [f"- {entry.name}: {entry.note}" for entry in self.entries if entry.note]


@contextlib.contextmanager
def importing() -> Iterator[dict[str, int]]:
    """Around imports: gives the bytes that they took, as `turns.compared` wants them told; 0 on a
    GPU, where its own memory is what counts."""
    before, found = memory("VmRSS"), {}
    yield found
    on_gpu = torch.cuda.is_available()
    found["libraries"] = 0 if on_gpu else max(memory("VmRSS") - before, 0)


def repeated(once):
    """What a contestant calls: `once`, so many times."""

    def run(times: int) -> None:
        for _ in range(times):
            once()

    return run
