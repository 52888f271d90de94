"""What a run keeps of all its starts: the seconds it has trained, and by which commits."""

import time

UNKNOWN = "unknown"  # the commit of a checkpoint that does not name one


class History:
    """Training time and commits of a run, over every requeue and resume; saved in its checkpoints.

    The clock goes while steps are made, saves included; building models, reading lists of files
    and evaluating are left out. What was lost by a kill or rolled back, and so is trained again,
    counts once: a checkpoint holds the time up to itself.

    Args:
        commit: of the code of this start.
    """

    def __init__(self, commit: str = UNKNOWN):
        self.commits = [commit]  # in their order; the last one is this start's
        self.before: float | None = 0.0  # seconds; None: not known
        self.since: float | None = None  # the clock at which counting began; None: it stands

    def go(self) -> None:
        """Count from now on."""
        self.since = time.monotonic() if self.since is None else self.since

    def stand(self) -> None:
        """Count no further until `go`."""
        self.before, self.since = self.seconds, None

    @property
    def seconds(self) -> float | None:
        """Training time of all starts; None where an earlier one, of an older version, left none
        in its checkpoint."""
        if self.before is None or self.since is None:
            return self.before
        return self.before + time.monotonic() - self.since

    def add(self, results: dict) -> None:
        """Take in a part of the run that was a run of its own, by what is in its results.json."""
        seconds = results.get("seconds")
        known = self.before is not None and seconds is not None
        self.before = self.before + seconds if known else None
        self._put_before(results.get("commits", [results["commit"]]))

    def shown(self) -> str:
        """The commits in their order as text."""
        return ", then ".join(self.commits)

    def state_dict(self) -> dict:
        return {"seconds": self.seconds, "commits": list(self.commits)}

    def load_state_dict(self, state: dict) -> None:
        """Go on with what a checkpoint holds; an empty state is that of an older version."""
        self.before, self.since = state.get("seconds"), None
        self._put_before(state.get("commits", [UNKNOWN]))

    def _put_before(self, commits: list[str]) -> None:
        *earlier, own = self.commits
        kept = dict.fromkeys([*earlier, *commits])
        self.commits = [*(commit for commit in kept if commit != own), own]
