"""A checkpoint's file: read without running anything of it, written whole or not at all.

A checkpoint holds tensors and plain containers only and is read with `weights_only=True`: a file
with anything else in it is refused and nothing of it runs.
"""

import argparse
import collections
import contextlib
import errno
import os
import pathlib
import pickle
import re
import shutil
import threading
import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np
import torch

from util.errors import UsageError, first_line


def read_checkpoint(path: str, flag: str = "", whole: bool = True) -> dict:
    """Read a checkpoint without executing anything from it; tensors land on the CPU.

    MAE's official files load too: they carry an `argparse.Namespace`, which is inert. So do
    SimMIM's, whose `yacs` config is read as the plain dict that it is, and those with numpy's
    numbers in them.

    Args:
        flag: that names the file, for errors. whole: look at every byte, as has to be done before
            the weights are used; else a file of any size is opened at once.

    Raises:
        UsageError: no such file, a damaged one, or one with more in it than data.
    """
    named = f"{flag} {path}".strip()
    if not os.path.isfile(path):
        what = "is a folder, and no checkpoint" if os.path.isdir(path) else "is no checkpoint"
        raise UsageError(f"{named} {what} file: check the path")
    inert = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, *_numpy_scalars()]
    inert.append((collections.OrderedDict, "yacs.config.CfgNode"))
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            _check_zip(path, whole)
        with torch.serialization.safe_globals(inert):
            is_mapped = is_zip and not whole
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)", str(error))
        more = f" ({what.group(1)})" if what else ""
        raise UsageError(
            f"{named} is refused, and nothing of it was run: it is damaged, or holds more than "
            f"tensors and plain values{more}: name another file, or one with its weights alone"
        ) from None
    except Exception as error:  # bytes that are no checkpoint can raise anything
        reason = first_line(error)[:200]
        raise UsageError(
            f"{named} is damaged, or no checkpoint ({reason}): copy it anew, or name another file"
        ) from None
    if not isinstance(state, dict):
        raise UsageError(
            f"{named} is no checkpoint: it holds a {type(state).__name__}, and a dict of weights "
            "is wanted"
        )
    return state


def _numpy_scalars() -> list:
    """What makes a numpy number, as `best_acc`, under the names of numpy 1 and 2; no arrays."""
    make = np.float64(0).__reduce__()[0]  # its module has had several names
    kinds = {type(np.dtype(code)) for code in "?bhilqBHILQefdgFD"}
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [np.dtype, *kinds, *((make, name) for name in names)]


def _check_zip(path: str, whole: bool) -> None:
    """Check that a zip file is torch's, and with `whole` the sums that it keeps of its parts,
    which torch does not look at."""
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/data.pkl") for name in archive.namelist()):
            raise zipfile.BadZipFile("a zip file without weights")
        damaged = archive.testzip() if whole else None
    if damaged:
        raise zipfile.BadZipFile(f"the sum of {damaged} is wrong")


def fingerprint(path: str) -> str:
    """A checksum of a checkpoint's content, cheap where the zip container has sums of its parts."""
    total = 0
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                words = f"{part.filename} {part.file_size} {part.CRC}\n"
                total = zlib.crc32(words.encode(), total)
    else:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                total = zlib.crc32(block, total)
    return f"{total:08x}"


def total_steps(state: dict) -> int:
    """Optimiser steps done in all; −1 where the file is no checkpoint of a main."""
    return state.get("progress", {}).get("total_steps", -1)


def read_same(path: str, steps: int, wanted: str) -> dict:
    """Read the file that rank 0 has chosen, which must be the same here.

    Raises:
        UsageError: it cannot be read, or is another one.
    """
    shared = "all ranks must read the same file, on a disk that their nodes share"
    try:
        state = read_checkpoint(path)
        found = fingerprint(path)
    except (UsageError, OSError) as error:
        raise UsageError(f"{error}; rank 0 resumes from it: {shared}") from None
    if (total_steps(state), found) != (steps, wanted):
        raise UsageError(
            f"{path} has step {total_steps(state)} and checksum {found}, rank 0's has step "
            f"{steps} and {wanted}: {shared}"
        )
    return state


def write_atomically(path: str, state: Any) -> None:
    """Write to `path`.tmp, flush it to the disk and rename it."""
    os.replace(write_temporary(path, state), path)
    sync_folder(os.path.dirname(path))


def write_temporary(path: str, state: Any, given_up: threading.Event | None = None) -> str:
    """Write to `path`.tmp, flush it to the disk, and return that name.

    Args:
        given_up: once it is set, from whichever thread, the writing ends with an error.

    Raises:
        OSError, RuntimeError: what could not be written; see `reason_of`.
    """
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        torch.save(state, _Stoppable(file, given_up) if given_up else file)
        file.flush()
        os.fsync(file.fileno())
    if given_up and given_up.is_set():
        raise InterruptedError("given up")
    return temporary


class _Stoppable:
    """A file, as torch writes to it, until `given_up` is set."""

    def __init__(self, file: BinaryIO, given_up: threading.Event):
        self.file, self.given_up, self.flush = file, given_up, file.flush

    def write(self, data: Any) -> int:
        if self.given_up.is_set():
            raise InterruptedError("given up")
        return self.file.write(data)


def reason_of(error: BaseException) -> str:
    """What the file system said, which torch hides behind an error of its own zip writer."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0]


def sync_folder(folder: str) -> None:
    """Flush a folder's entries, so that a rename outlives a power cut."""
    descriptor = os.open(folder or ".", os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)


def link_or_copy(source: str, target: str) -> None:
    """Make `target` a hard link to `source`, or a copy where the disk has no such links."""
    temporary = target + ".tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)
