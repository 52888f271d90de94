"""What takes long to find out about files, kept in the user's cache folder and mapped by all.

An index is one file of a header and arrays, which ranks and later runs map into memory instead of
reading folders and lists again. It counts as long as all that it was made of has the times, sizes
and inodes that it had; else it is made anew. Where a disk's times tell nothing, none is kept.
"""

import contextlib
import glob
import hashlib
import json
import logging
import mmap
import os
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

log = logging.getLogger(__name__)

MAGIC = b"MI-MAE index 1\n"
HEAD = struct.Struct("<QI")  # the header's bytes, and their checksum
ALIGNED = 64
NUM_THREADS = 8
# What changes twice within a tick of the disk's clock has one time: what is this new is not kept.
SETTLED = 10 * 10**9  # nanoseconds
UNUSED = 60 * 24 * 3600  # seconds after which an older index of the same files is removed
# File systems in user space whose folders have true times; those of object stores have none.
TIMED_FUSE = ("fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.sshfs")

Stamp = tuple[int, int, int, int]  # modified and changed in nanoseconds, size, inode
ABSENT: Stamp = (-1, -1, -1, -1)


@dataclass(frozen=True)
class Index:
    """header: plain values, as JSON has them. arrays: by name; read-only where they are mapped."""

    header: dict
    arrays: dict[str, np.ndarray]


# header, arrays, and each path that they were made of, with its stamp before it was read
Made = tuple[dict, dict[str, np.ndarray], list[tuple[str, Stamp]]]


def stamp(path: str) -> Stamp:
    """What changes whenever a file or the list of a folder's entries does."""
    try:
        found = os.stat(path)
    except OSError:
        return ABSENT
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def indexed(kind: str, of: Sequence[str], make: Callable[[], Made]) -> Index:
    """The kept index of some files or folders, made (and kept, if possible) where there is none.

    It waits for no other rank; processes may call it at the same time.

    Args:
        kind: what `make` finds out, and in which form: another form is another kind.
        of: the paths that it is about.
    """
    about = "\0".join([kind, *map(os.path.realpath, of)])
    key = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:24]
    for folder in kept_in():
        for path in _by_age(folder, key):
            index = _opened(path)
            if index is not None and _is_current(index):
                with contextlib.suppress(OSError):
                    os.utime(path)  # it is in use
                return index
    started = time.time_ns()
    header, arrays, made_of = make()
    arrays = arrays | {
        "made of": np.array([os.fsencode(path) for path, _ in made_of], dtype=bytes),
        "stamps": np.array([found for _, found in made_of], dtype=np.int64).reshape(-1, 4),
    }
    index = Index(header, arrays)
    times = arrays["stamps"][arrays["stamps"][:, 0] != ABSENT[0], :2]  # [n, 2]
    if times.size and times.max() > started - SETTLED:
        return index
    if not _can_be_told(times) or not all(map(_has_times, of)):
        log.info("%s: its times may not tell of changes, so that no index is kept", of[0])
        return index
    return _keep(key, index) or index


def kept_in() -> list[str]:
    """The folders for indexes, the best first: the user's cache, and one in the temporary folder.

    The latter is passed over where it is not the user's alone.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    temporary = os.path.join(tempfile.gettempdir(), f"mimae-{os.getuid()}")
    folders = [os.path.join(cache, "mimae", "index")]
    with contextlib.suppress(OSError):
        os.makedirs(temporary, mode=0o700, exist_ok=True)
        found = os.lstat(temporary)
        is_own = found.st_uid == os.getuid() and not found.st_mode & 0o022
        if stat.S_ISDIR(found.st_mode) and is_own:
            folders.append(os.path.join(temporary, "index"))
    return folders


# ---------------------------------------------------------------------------- whether it is current


def _is_current(index: Index) -> bool:
    paths = [os.fsdecode(path) for path in index.arrays["made of"]]
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        stamps = list(threads.map(stamp, paths, chunksize=64))
    return np.array_equal(np.array(stamps, dtype=np.int64).reshape(-1, 4), index.arrays["stamps"])


def _can_be_told(times: np.ndarray) -> bool:
    """Whether times [n, 2] of what was read are its own, in which a change would show."""
    if not len(times) or times.min() <= 0:
        return False
    return len(times) == 1 or len(np.unique(times, axis=0)) > 1  # else they are the mount's


def _has_times(path: str) -> bool:
    kind = _file_system(os.path.realpath(path))
    return not kind.startswith("fuse") or kind in TIMED_FUSE


def _file_system(path: str) -> str:
    """The kind of file system on which a path lies, as Linux names it; empty: not known."""
    best, kind = -1, ""
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        place = before.split()[4].replace("\\040", " ")
        is_above = path == place or path.startswith(place.rstrip("/") + "/")
        if is_above and len(place) >= best:
            best, kind = len(place), after.split()[0]
    return kind


# --------------------------------------------------------------------------------------- the file


def _by_age(folder: str, key: str) -> list[str]:
    """The kept files of a key, the newest first."""
    dated = []
    for path in glob.glob(os.path.join(glob.escape(folder), f"{key}-*.index")):
        with contextlib.suppress(OSError):
            dated.append((os.stat(path).st_mtime, path))
    return [path for _, path in sorted(dated, reverse=True)]


def _keep(key: str, index: Index) -> Index | None:
    """Write an index and map it; None where no folder takes it.

    Its name is its own: who has mapped an older one goes on with that.
    """
    failed = None
    for folder in kept_in():
        temporary = ""
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
                temporary = file.name
                sum_ = _write(file, index)
            path = os.path.join(folder, f"{key}-{sum_:08x}.index")
            if _opened(path) is None:
                os.replace(temporary, path)
            else:  # another process was sooner
                os.unlink(temporary)
            _remove_unused(folder, key, path)
            return _opened(path)
        except OSError as error:
            failed = failed or f"{folder}: {error.strerror}"
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    log.warning("no index is kept (%s): the next start reads all again", failed)
    return None


def _write(file, index: Index) -> int:
    """Write an index; the checksum of its header, which has those of the arrays."""
    layout, place = {}, 0
    raw = {k: np.frombuffer(np.ascontiguousarray(v), np.uint8) if v.nbytes else np.empty(0, "u1")
           for k, v in index.arrays.items()}  # fmt: skip
    for name, array in index.arrays.items():
        layout[name] = [array.dtype.str, list(array.shape), place, zlib.crc32(raw[name])]
        place += -(-array.nbytes // ALIGNED) * ALIGNED
    header = json.dumps({"header": index.header, "arrays": layout, "bytes": place}).encode()
    sum_ = zlib.crc32(header)
    file.write(MAGIC + HEAD.pack(len(header), sum_) + header)
    file.write(bytes(-file.tell() % ALIGNED))
    start = file.tell()
    for name, values in raw.items():
        file.seek(start + layout[name][2])
        file.write(values)
    file.truncate(start + place)
    file.flush()
    os.fsync(file.fileno())
    return sum_


def _opened(path: str) -> Index | None:
    """Map an index; None where there is none that is whole."""
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return None
            length, sum_ = HEAD.unpack(file.read(HEAD.size))
            header = file.read(length)
            start = -(-file.tell() // ALIGNED) * ALIGNED
            if zlib.crc32(header) != sum_:
                return None
            about = json.loads(header)
            if os.fstat(file.fileno()).st_size != start + about["bytes"]:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            arrays = {}
            for name, (dtype, shape, place, sum_) in about["arrays"].items():
                count = int(np.prod(shape))
                array = np.empty(0, dtype)
                if count:
                    array = np.frombuffer(mapped, dtype, count, start + place)
                if _checksum(file, start + place, array.nbytes) != sum_:
                    return None
                arrays[name] = array.reshape(shape)
    except (OSError, ValueError, struct.error):
        return None
    return Index(about["header"], arrays)


def _checksum(file, place: int, length: int) -> int:
    """Of a part of a file; it is read, since what is looked at in a mapping stays resident."""
    file.seek(place)
    sum_ = 0
    while length > 0 and (data := file.read(min(length, 2**22))):
        sum_, length = zlib.crc32(data, sum_), length - len(data)
    return sum_


def _remove_unused(folder: str, key: str, but: str) -> None:
    for path in _by_age(folder, key):
        with contextlib.suppress(OSError):
            if path != but and time.time() - os.stat(path).st_mtime > UNUSED:
                os.unlink(path)
