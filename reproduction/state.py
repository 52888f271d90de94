"""How far the jobs are, by the files in their folders: job.json, results.json and log.out."""

import glob
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from reproduction.graph import Graph, Job
from util import errors
from util.provenance import commit, is_same
from util.training.output import RESULTS

RECORD, LOG = "job.json", "log.out"
STATUSES = {
    1: "an error that is not the user's",
    errors.EXIT_USAGE: "bad input",
    errors.EXIT_NONFINITE: "the loss became NaN",
    errors.EXIT_DATA: "too many broken images, or a loader's worker died",
    errors.EXIT_MEMORY: "out of memory",
    errors.EXIT_LOST_RANKS: "ranks were lost",
    errors.EXIT_INTERRUPTED: "interrupted after a checkpoint",
}
DONE, RUNNING, FAILED, MISSING = "done", "running", "failed", "missing"
OTHER_FLAGS, OTHER_COMMIT = "done with other flags", "done by another commit"
BEGUN = "begun by another commit"  # not done, and to go on would mix the two
OTHER_NEEDS = "made of what is there no more"  # an encoder by other flags, or made anew since
OTHERS = (OTHER_FLAGS, OTHER_COMMIT, OTHER_NEEDS, BEGUN)
TIME_LEFT = re.compile(r"(\d+(?::\d\d)+) in all")  # as `util.progress` has it
# Files of a run from which it would go on; of several draws each has its own.
GOES_ON_FROM = ("checkpoint-*.pth", "draw-*/checkpoint-*.pth", "draw-*/blr-*/checkpoint-*.pth")


def words_of(status: int) -> str:
    """What an exit status of a run means, in words."""
    if status < 0 or status in (130, 137, 143):
        return f"ended by signal {-status if status < 0 else status - 128}"
    return STATUSES.get(status, f"exit status {status}")


@dataclass
class JobState:
    """How far one job is.

    Args:
        state: DONE, RUNNING, FAILED, MISSING, or one of OTHERS.
        detail: the log's last line, or the flags or commits that are not the wanted ones.
        results: what is in results.json, if it exists.
        seconds: what all attempts took together, by the clock: to tell the time left.
        left: seconds that a running job says it has left; None: it has not said so.
    """

    job: Job
    state: str
    detail: str = ""
    results: dict | None = None
    seconds: float = 0.0
    left: float | None = None

    @property
    def trained(self) -> float | None:
        """The run's own seconds, of training over all its starts; None where it does not know."""
        return (self.results or {}).get("seconds")

    @property
    def commits(self) -> list[str]:
        """Those of the code of all its starts, in order; empty without results."""
        return commits_of(self.results) if self.results else []


class Folder:
    """A job's folder: reads and writes job.json, the record of its attempts."""

    def __init__(self, graph: Graph, job: Job):
        self.graph, self.job, self.path = graph, job, graph.folder(job.name)
        self.command = [job.main, *graph.arguments(job)]

    @cached_property
    def needs(self) -> dict[str, str]:
        """Digests of the jobs that this one needs, by name."""
        return {name: self.graph.digest(self.graph.jobs[name]) for name in self.job.needs}

    def record(self) -> dict:
        """What is in job.json: command, commit and attempts; empty before the first attempt."""
        return _read_json(os.path.join(self.path, RECORD)) or {}

    def last_attempt(self) -> dict:
        """The last attempt in job.json; empty before the first."""
        return last_attempt(self.record())

    def write(self, **changes) -> None:
        """Change entries of job.json, by a rename, so that it is never half written."""
        os.makedirs(self.path, exist_ok=True)
        path = os.path.join(self.path, RECORD)
        with open(f"{path}.part", "w") as file:
            json.dump(self.record() | changes, file, indent=1)
        os.replace(f"{path}.part", path)

    def begin(self, **about) -> None:
        """Record that an attempt begins; `about` is kept with it, as the SLURM job's number."""
        own, earlier = commit(), self.begun_by()
        commits = [*(name for name in earlier if name != own), own]
        attempts = [*self.record().get("attempts", []), {"start": time.time()} | about]
        made_by = dict(command=self.command, needs=self.needs, commit=own, commits=commits)
        self.write(**made_by, attempts=attempts)

    def note(self, **about) -> None:
        """Keep more with the last attempt, as its process's number."""
        attempts = self.record()["attempts"]
        attempts[-1] |= about
        self.write(attempts=attempts)

    def begun_by(self) -> list[str]:
        """The commits of what lies here for the job to go on from; empty where nothing does."""
        record = self.record()
        patterns = (f"{glob.escape(self.path)}/{pattern}" for pattern in GOES_ON_FROM)
        return commits_of(record) if record and any(map(glob.glob, patterns)) else []

    def end(self, status: int | None) -> float:
        """Record that the last attempt has ended, and return its seconds.

        Args:
            status: its exit status; None where only an earlier process could have told.
        """
        attempts = self.record()["attempts"]
        attempts[-1] |= {"end": time.time(), "status": status}
        self.write(attempts=attempts)
        return attempts[-1]["end"] - attempts[-1]["start"]

    def results(self) -> dict | None:
        """The results.json that the job wrote at its end; None before it has."""
        if self.job.kind == "scenes":
            is_done = self.last_attempt().get("status") == 0
            names = commits_of(self.record())
            return {"commit": names[-1], "commits": names} if is_done else None
        return _read_json(os.path.join(self.path, RESULTS))

    def log(self) -> str:
        """The path of the newest log: the last SLURM job's, or that of runs on this machine."""
        number = self.last_attempt().get("slurm_job")
        return f"{self.path}/slurm/{number}_0_log.out" if number else f"{self.path}/{LOG}"

    def last_lines(self) -> list[str]:
        """The lines at the log's end that are not empty."""
        try:
            with open(self.log(), "rb") as file:
                file.seek(max(0, os.path.getsize(file.name) - 4000))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return []
        return [line.split("\r")[-1].strip() for line in lines if line.strip()]

    def last_line(self, of_failure: bool = False) -> str:
        """The log's last line; with `of_failure`, the last by which the run reports an error."""
        said = self.last_lines()[::-1]
        own = [line for line in said if re.match(r"(\[rank \d+\] )?error: ", line)]
        return next(iter(own if of_failure and own else said), "")

    def said_left(self) -> float | None:
        """Seconds of the whole run that the newest line with such a number has left."""
        said = TIME_LEFT.findall("\n".join(self.last_lines()))
        if not said:
            return None
        *hours, minutes, seconds = map(int, said[-1].split(":"))
        return 3600.0 * sum(hours) + 60 * minutes + seconds

    def state(self, wanted: str | None, is_alive: bool = False) -> JobState:
        """How far the job is.

        Args:
            wanted: the commit whose results count; None counts any.
            is_alive: whether the last attempt is still looked after: by a process of reproduce.py
                or by SLURM. An attempt without an end counts as running only then.
        """
        record, results = self.record(), self.results()
        attempts = record.get("attempts", [])
        seconds = sum(a["end"] - a["start"] for a in attempts if "end" in a)
        found = JobState(self.job, MISSING, "", results, seconds)
        if attempts and "status" not in attempts[-1] and is_alive:
            found.state, found.detail = RUNNING, self.last_line()
            found.seconds += time.time() - attempts[-1]["start"]
            found.left = self.said_left()
        elif record.get("command", self.command) != self.command:
            if results or attempts:
                found.state, found.detail = OTHER_FLAGS, " ".join(record["command"])
        elif (results or self.begun_by()) and (changed := self._changed_needs(record)):
            found.state, found.detail = OTHER_NEEDS, ", ".join(changed)
        elif results:
            found.state = DONE
            found.seconds = seconds or results.get("seconds") or 0.0
            if wanted and not all(is_same(name, wanted) for name in found.commits):
                found.state, found.detail = OTHER_COMMIT, ", then ".join(found.commits)
        elif attempts and "slurm_job" in attempts[-1]:
            found.state = FAILED
            found.detail = self.last_line(True) or "cancelled before it began: what it needs failed"
        elif attempts and attempts[-1].get("status"):
            status = attempts[-1]["status"]
            found.state, found.detail = FAILED, f"{words_of(status)}: {self.last_line(True)}"
            if status == errors.EXIT_INTERRUPTED or status < 0:
                found.state, found.detail = MISSING, words_of(status)
        if wanted and found.state in (MISSING, FAILED) and attempts:
            self._refuse_mixture(found)
        return found

    def _changed_needs(self, record: dict) -> list[str]:
        """The jobs that this one needs and that are others than those it was made of: by their
        flags, or begun anew after it. A folder without a record tells nothing of it."""
        known, began = record.get("needs", {}), last_attempt(record).get("start")
        changed = []
        for name, digest in self.needs.items():
            if self.graph.jobs[name].kind == "scenes":  # always the same
                continue
            need = Folder(self.graph, self.graph.jobs[name])
            anew = need.last_attempt().get("start")
            is_later = began is not None and anew is not None and anew > began
            if known.get(name, digest) != digest or is_later:
                changed.append(name)
            else:
                changed += need._changed_needs(need.record())
        return changed

    def _refuse_mixture(self, found: JobState) -> None:
        """A job that is not done is BEGUN if the code as it is would go on with another's work."""
        commits = self.begun_by()
        if commits and commits != [commit()]:
            found.detail = ": ".join(filter(None, [", then ".join(commits), found.detail]))
            found.state = BEGUN

    def runs_otherwise(self, any_commit: bool = False) -> str:
        """Why what runs here is not what the code as it is would run; empty where it is."""
        record = self.record()
        if record["command"] != self.command or record.get("needs", self.needs) != self.needs:
            return "runs with other flags"
        is_same = any_commit or commits_of(self.record()) == [commit()]
        return "" if is_same else "runs by another commit"


def commits_of(record: dict) -> list[str]:
    """The commits in what was read from a job.json or results.json, in their order."""
    return record.get("commits") or [str(record.get("commit"))]


def mixed_commits(graph: Graph, job_name: str) -> list[str]:
    """The commits of those that a job needs and its own, in their order; empty where all are of
    one."""

    def runs_of(name: str) -> list[list[str]]:
        results = Folder(graph, graph.jobs[name]).results()
        needed = [run for need in graph.jobs[name].needs for run in runs_of(need)]
        return needed + ([commits_of(results)] if results else [])

    runs, names = runs_of(job_name), []
    left = list(dict.fromkeys(one for run in runs for one in run))
    while left:  # the next is one before which no run has another that is left
        later = {two for run in runs for i, two in enumerate(run) if set(run[:i]) & set(left)}
        names.append(next((one for one in left if one not in later), left[0]))
        left.remove(names[-1])
    return names if len(names) > 1 else []


def last_attempt(record: dict) -> dict:
    """The last attempt in what was read from a job.json; empty before the first."""
    return (record.get("attempts") or [{}])[-1]


def state_of(graph: Graph, job_name: str, wanted: str | None) -> JobState:
    """The state of a job none of whose attempts is running; see `Folder.state`."""
    return Folder(graph, graph.jobs[job_name]).state(wanted)


def _read_json(path: str) -> dict | None:
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def seconds_left(
    states: Sequence[JobState], at_once: int, elsewhere: float = 0.0
) -> tuple[float, list[str]]:
    """Estimate how long what is missing will take, by the rates of the jobs that are done, and of
    those that run and know how long they have left.

    Args:
        at_once: how many jobs run side by side.
        elsewhere: seconds that a job of the scale took, in the mean, on another machine: for kinds
            of which nothing is known here; 0: nobody knows.

    Returns:
        Seconds, and the kinds of which nothing is known here.
    """
    rates: dict[str, list[float]] = defaultdict(list)
    for found in states:
        whole = found.seconds if found.state == DONE else found.seconds + (found.left or 0)
        if (found.state == DONE or found.left) and found.seconds and found.job.work:
            rates[found.job.kind].append(whole / found.job.work)
    left, unknown = 0.0, set()
    for found in states:
        if found.state == DONE:
            continue
        if found.left is not None:
            left += found.left
        elif found.job.kind in rates:
            known = rates[found.job.kind]
            left += found.job.work * sum(known) / len(known)
        else:
            left += elsewhere
            unknown.add(found.job.kind)
    return left / at_once, sorted(unknown)


def status_lines(states: Sequence[JobState], at_once: int, elsewhere: float = 0.0) -> list[str]:
    """One line for each job, and a last one that counts them and tells the time left; arguments as
    those of `seconds_left`."""
    lines = []
    for found in states:
        took = f"{found.seconds:7.0f} s" if found.seconds else " " * 9
        detail = f"  {found.detail}" if found.detail else ""
        lines.append(f"{found.state:8s} {took}  {found.job.name}{detail}")
    kinds = [found.state for found in states]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    left, unknown = seconds_left(states, at_once, elsewhere)
    line = f"{len(states)} jobs: {counts}"
    if any(kind != DONE for kind in kinds):
        line += f"; about {left / 60:.0f} minutes left" if left else ""
        names = ", ".join(unknown)
        if unknown and elsewhere:
            line += f" ({names}: by runs on another machine)"
        elif unknown:
            line += f"; no {names} is done yet to tell by"
    return [*lines, line]
