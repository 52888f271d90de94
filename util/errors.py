"""Errors that a user can fix, and the exit statuses of every main."""

# Exit statuses. 0 is kept for a finished run.
EXIT_USAGE = 2  # unusable arguments, data or checkpoint: fix what the line names
EXIT_NONFINITE = 3  # the loss became NaN or infinite and could not be rolled back
EXIT_DATA = 4  # too many unreadable images, or a data-loader worker died
EXIT_MEMORY = 5  # the device ran out of memory
EXIT_LOST_RANKS = 69  # other ranks did not come, or are gone (EX_UNAVAILABLE)
EXIT_INTERRUPTED = 75  # a signal ended the run after a checkpoint (EX_TEMPFAIL: resume it)


class RunError(Exception):
    """Ends a run with one line on stderr and `status` as its exit status."""

    status = 1

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        if status is not None:
            self.status = status


class UsageError(RunError, ValueError):
    """Bad input. The message is one line that names the flag or file and the fix."""

    status = EXIT_USAGE


class Stopped(KeyboardInterrupt):
    """A signal ends the program where it is; no `except Exception`, as that around the reading of
    an image, may take it for an error of what runs there."""


def first_line(error: BaseException) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
