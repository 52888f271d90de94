"""A run's output folder: locked while the run lives, and nothing in it is overwritten."""

import errno
import fcntl
import glob
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import IO

from PIL import Image

from util.cluster import distributed
from util.errors import RunError, UsageError
from util.reporting.run_folder import INPUTS, RECORD, REPORT, RESULTS
from util.training.journal import finite

log = logging.getLogger(__name__)

PREDICTIONS = "test_predictions.npy"  # int32 [images, 2]: the predicted class and the true one
PREDICTED_OF = "test_predictions.json"  # what those were made of
WRITTEN = (
    "checkpoint-*.pth", "log.txt", RESULTS, "nonfinite.json", "events.*", "reconstructions.png",
    "predictions.json", PREDICTIONS, PREDICTED_OF, RECORD, REPORT, INPUTS, "pictures",
    "tracker.json",
)  # fmt: skip


def lock(file: IO) -> bool | None:
    """Lock an open file until it is closed.

    The lock is the process's own (POSIX): it ends with the process, however that dies, and is not
    inherited by data-loader workers.

    Returns:
        True; False: another process holds it; None: its disk has no locks, which the log says.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        log.warning("%s cannot be locked (%s)", os.path.dirname(file.name), error.strerror)
        return None
    return True


class OutputFolder:
    """A run's folder, locked while the run lives; what an earlier run left is set aside.

    Raises:
        UsageError: it cannot be written, or another run uses it.
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
        is_own = lock(self.lock)
        if is_own is False:
            raise UsageError(
                f"--output_dir {path} is in use by another run: name another folder, or end it"
            )
        if is_own is None:
            return  # what looks left over may be a living run's
        for leftover in glob.glob(os.path.join(glob.escape(path), "*.tmp")):
            os.unlink(leftover)

    def holds(self, file: str) -> bool:
        """Whether a file lies directly in this folder."""
        return bool(file) and os.path.realpath(os.path.dirname(file)) == os.path.realpath(self.path)

    def write(self, contents: Mapping[str, str | dict | Image.Image | None]) -> None:
        """Write an evaluation's tables, JSON and pictures by their names, and set aside what an
        earlier one left under these names and in results.json.

        Raises:
            RunError: a full disk.
        """
        self.set_aside([RESULTS, *contents])
        for name, content in contents.items():
            path = os.path.join(self.path, name)
            try:
                if isinstance(content, Image.Image):
                    content.save(path)
                elif content is not None:
                    with open(path, "w") as file:
                        is_text = isinstance(content, str)
                        file.write(content if is_text else json.dumps(finite(content), indent=1))
            except OSError as error:
                raise RunError(
                    f"{path} cannot be written ({error.strerror}): free space there, and start "
                    "again, which computes no features or predictions twice"
                ) from None

    def set_aside(self, patterns: Sequence[str] = WRITTEN) -> None:
        """Move what an earlier run left into `previous-1` and so on: nothing is overwritten."""
        if not distributed.is_main():
            return
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
        names = ", ".join(sorted(os.path.basename(file) for file in old))
        log.warning("set aside into %s: %s (with --resume auto a run goes on)", folder, names)
