"""The command line of a start of a SLURM job, which may be one after others."""

import os

from util.flags.parser import WRITTEN_OUT, is_given, value_of
from util.training.same_run import LAST


def begin(sources: dict[str, str], submitted: float, argv: list[str]) -> list[str]:
    """The words that are run: those of the job; but a training that --resume FILE began, and that
    has saved since it was submitted, goes on from there where the job starts again.

    In a module, so that it is pickled as its name: then it acts on the job's own modules.

    Args:
        sources: the @files in which flags of `argv` stood. submitted: when, in seconds.
    """
    WRITTEN_OUT.update(sources)
    is_first = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
    given = {flag for flag in ("--resume", "--eval", "--predict") if is_given(flag, argv)}
    saved = os.path.join(value_of("--output_dir", argv) or "", LAST)
    if is_first or given != {"--resume"} or not os.path.isfile(saved):
        return argv
    return [*argv, "--resume", "auto"] if os.path.getmtime(saved) > submitted else argv
