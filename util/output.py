"""A run's output folder: locked while the run lives, and nothing in it is overwritten."""

import errno
import fcntl
import glob
import logging
import os

from util import distributed
from util.errors import UsageError

log = logging.getLogger(__name__)


class OutputFolder:
    """A run's folder, locked while the run lives; what an earlier run left is set aside.

    The lock is the process's own (POSIX): it ends with the process, however that dies, and is not
    inherited by data-loader workers.
    """

    def __init__(self, path: str):
        self.path = path
        if not distributed.is_main():
            return
        try:
            os.makedirs(path, exist_ok=True)
            self.lock = open(os.path.join(path, ".lock"), "w")  # noqa: SIM115 - held until exit
        except OSError as error:
            raise UsageError(
                f"--output_dir {path} cannot be written ({error.strerror}): name another one"
            ) from None
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("--output_dir %s cannot be locked (%s)", path, error.strerror)
                return
            raise UsageError(
                f"--output_dir {path} is in use by another run: name another folder, or end it"
            ) from None
        for leftover in glob.glob(os.path.join(glob.escape(path), "*.tmp")):
            os.unlink(leftover)

    def set_aside(self) -> None:
        """Move what an earlier run left into `previous-1` and so on: nothing is overwritten."""
        if not distributed.is_main():
            return
        patterns = ("checkpoint-*.pth", "log.txt", "results.json", "nonfinite.json", "events.*")
        old = [f for p in patterns for f in glob.glob(os.path.join(glob.escape(self.path), p))]
        if not old:
            return
        number = 1
        while os.path.exists(os.path.join(self.path, f"previous-{number}")):
            number += 1
        folder = os.path.join(self.path, f"previous-{number}")
        os.makedirs(folder)
        for file in old:
            os.replace(file, os.path.join(folder, os.path.basename(file)))
        log.warning("a run was in %s; it lies in %s now (--resume auto goes on)", self.path, folder)
