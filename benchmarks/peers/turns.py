"""Our step beside the same step of others' packages: who can take part, turns, and the table.

The turns are `benchmarks.contest`'s; the first contestant is ours, to which the others are
compared.
"""

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util

import torch

from benchmarks.contest import Build, Contestant, hold
from benchmarks.gpu.record import Rows, table
from util.errors import UsageError
from util.provenance import commit, versions

GIB = 2**30
GET = "pip install -r benchmarks/peers/requirements.txt"


@dataclass(frozen=True)
class Entrant:
    """One that may take part.

    Args:
        build: see `benchmarks.contest`; gets `args`.
        is_there: whether what it needs is installed. get: how one gets that.
    """

    name: str
    build: Build
    args: tuple = ()
    is_there: bool = True
    get: str = GET


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without doing it."""
    return util.find_spec(package) is not None


def take_turns(entrants: Sequence[Entrant], rounds: int, steps: int) -> list[Contestant]:
    """Those that are installed, timed in turns, the first of all of them first; a line says of each
    other how to get it."""
    for entrant in entrants:
        if not entrant.is_there:
            print(f"skipped: {entrant.name}; {entrant.get}", flush=True)
    there = [e for e in entrants if e.is_there]
    if len(there) == 1 < len(entrants):
        return []  # nothing to compare
    found = hold([(e.name, e.build, *e.args) for e in there], rounds, steps)
    return found if found and found[0].name == there[0].name else []  # ours failed


def compared(found: Sequence[Contestant], samples: int, unit: str) -> Rows:
    """A row of each contestant: its time and memory, and how often it takes the first one's.

    Ratios of times are medians over the rounds, with the least and the most. Of one thread the
    CPU's seconds are those of an idle machine, nearly, whatever else it does; of several they are
    no measure, since threads wait for each other busily. Memory is
    resident, of a process of its own, beyond torch's; where the facts have `libraries`, the bytes
    that importing the package took, those are told apart.

    Args:
        samples: of one step of each. unit: what a sample is.
    """
    rows: Rows = []
    for one in found:
        libraries = one.facts.get("libraries", 0)
        cpu = statistics.median(one.cpu_rates)
        row: dict[str, object] = {
            "": one.name,
            f"s per {unit}": f"{1 / one.rate / samples:.4g}",
            "x ours": _ratio(found[0].rates, one.rates),
        }
        if torch.get_num_threads() == 1 and not torch.cuda.is_available():
            row[f"CPU s per {unit}"] = f"{1 / cpu / samples:.4g}"
            row["x ours, CPU s"] = _ratio(found[0].cpu_rates, one.cpu_rates)
        row |= {
            "GiB": f"{_own(one) / GIB:.2f}",
            "x our memory": f"{_own(one) / max(_own(found[0]), 1):.2f}",
            "GiB of libraries": f"{libraries / GIB:.2f}",
        }
        rows.append(row)
    return rows


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times theirs takes, the median over the rounds, with the least and the most."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _own(one: Contestant) -> int:
    """Bytes at the peak, but for those of libraries."""
    return one.peak - one.facts.get("libraries", 0)


def as_data(found: Sequence[Contestant], samples: int) -> list[dict[str, object]]:
    """What was measured of each, for a JSON: steps per second of each turn, bytes, facts."""
    return [
        {"name": one.name, "rates": one.rates, "cpu_rates": one.cpu_rates, "samples": samples}
        | {"peak": one.peak, "facts": one.facts}
        for one in found
    ]


def about(packages: Sequence[str] = ()) -> dict[str, object]:
    """The machine, the commit, and the versions of our libraries and of `packages`."""
    found: dict[str, object] = {"machine": machine(), "threads": torch.get_num_threads()}
    found |= {"commit": commit(), "python": platform.python_version()} | versions()
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> str:
    """The GPU's name, or the CPU's with its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1] for line in file if line.startswith("model name")]
        name = names[0].strip() if names else name
    return f"{name}, {os.cpu_count()} cores"


def write(path: str, what: dict[str, object], sections: dict[str, Rows], data: object) -> None:
    """PATH.md with a table for each section, PATH.json with all numbers.

    Raises:
        UsageError: a path that cannot be written to.
    """
    told = ", ".join(f"{name} {value}" for name, value in what.items())
    text = "\n\n".join([told, *(f"### {name}\n\n{table(rows)}" for name, rows in sections.items())])
    full = json.dumps({"about": what, "contests": data}, indent=1)
    try:
        for kind, content in (("md", text), ("json", full)):
            with open(f"{path}.{kind}", "w") as file:
                file.write(content + "\n")
    except OSError as error:
        raise UsageError(f"--out {path}: {error.strerror}: name another place") from None
