"""A labelled folder's images corrupted, in ImageNet-C's layout.

python -m tools.corrupt SRC DST

SRC/CLASS/IMAGE becomes DST/CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG. As published: the shorter side
resized to 256 (bilinear), the centre 224 x 224 cut out, corrupted, and saved as JPEG of quality
85; --keep_size corrupts each image at its own size instead. Frost's textures are procedural, so
what is written is "-C-like". Run again after an interruption, it makes what is missing.
"""

import argparse
import io
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from PIL import Image

from util.data.corruption.constants import PUBLISHED
from util.data.corruption.corruptions import (
    CORRUPTIONS,
    NOTE,
    RECORD,
    SEVERITIES,
    corrupt,
    corruption_rng,
    to_pil,
)
from util.data.file_index import find_images
from util.data.images import read_image, to_bytes
from util.data.transforms import ELONGATED
from util.entry import run_main
from util.errors import EXIT_DATA, RunError, UsageError
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging
from util.progress import ProgressLine

RESIZE, CROP, QUALITY = 256, 224, 85
IMAGES_PER_TASK = 4
END_OF_JPEG = b"\xff\xd9"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    # fmt: off
    add("src", metavar="SRC", help="folder of images, SRC/CLASS/IMAGE")
    add("dst", metavar="DST", help="gets DST/CORRUPTION/SEVERITY/CLASS/IMAGE.JPEG")
    add("--corruptions", nargs="+", choices=list(CORRUPTIONS), default=list(CORRUPTIONS),
        metavar="NAME", help="which of: " + ", ".join(CORRUPTIONS))
    add("--severities", nargs="+", type=int, choices=SEVERITIES, default=list(SEVERITIES))
    add("--keep_size", action="store_true",
        help=f"corrupt images at their own size, not resized to {RESIZE} and cut to {CROP}")
    add("--constants", choices=("auto", *PUBLISHED), default="auto",
        help="whose published constants; auto: those for the size nearest to the image's")
    add("--in_chans", type=int, choices=(1, 3), default=3, help="corrupt and save as grey or RGB")
    add("--seed", type=number(int, 0), default=0, help="every random number is a function of it")
    add("--num_workers", type=number(int, 0), default=len(os.sched_getaffinity(0)),
        help="processes that work; 0: none but this one")
    # fmt: on
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    setup_logging()
    paths = list_images(args.src, args.dst)
    _keep_record(args)
    _check_images(args, paths)
    progress = ProgressLine("images", len(paths))
    made, bad, done = 0, [], 0
    for num_images, num_made, unreadable in _results(args, paths):
        made, bad = made + num_made, bad + unreadable
        done += num_images
        progress.update(done, f"{made} made, {len(bad)} unreadable")
    progress.close()
    if bad:
        raise UsageError(
            f"SRC {args.src}: {len(bad)} of {len(paths)} images cannot be corrupted "
            f"({'; '.join(sorted(bad)[:3])}): mend or remove them and run again; the rest is done"
        )
    wanted = len(paths) * len(set(args.corruptions)) * len(set(args.severities))
    print(f"{args.dst}: {made} images made, {wanted - made} were there already. {NOTE}.")


def list_images(src: str, dst: str) -> list[str]:
    """The images of SRC as CLASS/IMAGE, sorted.

    Raises:
        UsageError: SRC is no folder, has no image, or has some in other places than CLASS/; two
            would get one name; DST lies in SRC.
    """
    if not os.path.isdir(src):
        raise UsageError(f"SRC {src} is not a folder: name one that holds CLASS/IMAGE")
    inside, outside = os.path.realpath(dst), os.path.realpath(src)
    if os.path.commonpath([inside, outside]) == outside:
        raise UsageError(f"DST {dst} lies inside SRC {src}: name a folder elsewhere")
    paths = find_images(src)
    if not paths:
        raise UsageError(f"SRC {src} holds no image: name a folder that holds CLASS/IMAGE")
    misplaced = [path for path in paths if path.count(os.sep) != 1]
    if misplaced:
        raise UsageError(
            f"SRC {src}: {len(misplaced)} of {len(paths)} images do not lie in a class folder "
            f"right below it ({misplaced[0]}): put each into SRC/CLASS/"
        )
    names: dict[str, str] = {}
    for path in paths:
        other = names.setdefault(os.path.splitext(path)[0], path)
        if other != path:
            raise UsageError(f"SRC {src}: {other} and {path} would get one name: rename one")
    return paths


def _keep_record(args: argparse.Namespace) -> None:
    """Write into DST how its images are made, or check that they were made so.

    Raises:
        UsageError: DST has images made otherwise, or cannot be written.
    """
    record = {
        "note": NOTE,
        "size": "kept" if args.keep_size else f"resize {RESIZE}, centre crop {CROP}",
        "constants": args.constants,
        "in_chans": args.in_chans,
        "seed": args.seed,
        "jpeg_quality": QUALITY,
    }
    path = os.path.join(args.dst, RECORD)
    try:
        os.makedirs(args.dst, exist_ok=True)
        if os.path.exists(path):
            with open(path) as file:
                found = json.load(file)
            other = [key for key in record if found.get(key) != record[key]]
            if other:
                raise UsageError(
                    f"DST {args.dst} was made with other settings ({other[0]}: "
                    f"{found.get(other[0])}, not {record[other[0]]}): use the same, or another DST"
                )
        else:
            _write(path, json.dumps(record, indent=1).encode())
    except OSError as error:
        raise UsageError(f"DST {args.dst} cannot be written ({error.strerror})") from None
    except (ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is damaged: remove it, or use another DST") from None


def _check_images(args: argparse.Namespace, paths: list[str]) -> None:
    """Raise UsageError where DST has an image that SRC lacks: it was made of other images."""
    folders = (os.path.join(args.dst, n, str(s)) for n in args.corruptions for s in args.severities)
    made = next(filter(os.path.isdir, folders), None)  # the first: all have the same
    if made is None:
        return
    stems = {os.path.splitext(path)[0] for path in paths}
    for path in find_images(made, is_told=False):
        if os.path.splitext(path)[0] not in stems:
            raise UsageError(
                f"DST {args.dst} was made of other images than SRC {args.src}: {made} has {path}, "
                "which SRC lacks: use another DST"
            )


def _results(args: argparse.Namespace, paths: list[str]) -> Iterator[tuple[int, int, list[str]]]:
    """What came of each task, in the order in which they end."""
    tasks = [paths[i : i + IMAGES_PER_TASK] for i in range(0, len(paths), IMAGES_PER_TASK)]
    if args.num_workers == 0:
        yield from (corrupt_images(args, task) for task in tasks)
        return
    workers = ProcessPoolExecutor(
        min(args.num_workers, len(tasks)), multiprocessing.get_context("fork"), _leave_signals
    )
    terminate = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for future in as_completed([workers.submit(corrupt_images, args, t) for t in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise RunError(
            "a worker process died (out of memory?): use fewer --num_workers and run again",
            EXIT_DATA,
        ) from None
    finally:
        workers.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, terminate)


def _leave_signals() -> None:
    """A worker finishes its task; the main process sees to Ctrl-C and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def corrupt_images(args: argparse.Namespace, paths: list[str]) -> tuple[int, int, list[str]]:
    """Make what is missing of these images: (images, files made, `path (reason)` of bad ones)."""
    made, bad = 0, []
    for path in paths:
        missing = [
            (name, severity, target)
            for name in dict.fromkeys(args.corruptions)
            for severity in dict.fromkeys(args.severities)
            if not _is_done(args, path, target := target_path(args.dst, name, severity, path))
        ]
        if not missing:
            continue
        try:
            image = load(os.path.join(args.src, path), args.in_chans, args.keep_size)
            corrupt(image, "contrast", 1, 0)  # of a size that can be corrupted
        except Exception as error:  # whatever a decoder makes of a damaged file
            reason = str(error).replace(os.path.join(args.src, path), "").strip(": \n")
            bad.append(f"{path} ({(reason or type(error).__name__).splitlines()[0]})")
            continue
        for name, severity, target in missing:
            rng = corruption_rng(args.seed, path, name, severity)
            _save(target, corrupt(image, name, severity, rng, args.constants))
        made += len(missing)
    return len(paths), made, bad


def target_path(dst: str, name: str, severity: int, path: str) -> str:
    return os.path.join(dst, name, str(severity), f"{os.path.splitext(path)[0]}.JPEG")


def load(path: str, in_chans: int, keep_size: bool) -> np.ndarray:
    """An image as the protocol has it: uint8 [H, W, C].

    Raises:
        OSError, ValueError: it cannot be read as uint8.
    """
    pixels = to_bytes(read_image(path, in_chans)).permute(1, 2, 0).numpy()
    if keep_size:
        return pixels
    image = to_pil(pixels)
    short = min(image.size)
    width, height = (int(RESIZE * side / short) for side in image.size)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    if width * height > ELONGATED * RESIZE**2:  # what would be cut off is not made at all
        scale = short / RESIZE
        box = tuple(side * scale for side in (left, top, left + CROP, top + CROP))
        image = image.resize((CROP, CROP), Image.BILINEAR, box=box)
    else:
        image = image.resize((width, height), Image.BILINEAR)
        image = image.crop((left, top, left + CROP, top + CROP))
    return np.asarray(image).reshape(CROP, CROP, in_chans)


def _save(path: str, image: np.ndarray) -> None:
    data = io.BytesIO()
    to_pil(image).save(data, "JPEG", quality=QUALITY, optimize=True)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, data.getvalue())
    except OSError as error:
        raise UsageError(
            f"DST: {path} cannot be written ({error.strerror}): make room there, or name another"
        ) from None


def _write(path: str, data: bytes) -> None:
    """Written under another name first: a file of that name is whole."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _is_done(args: argparse.Namespace, path: str, target: str) -> bool:
    """Whether a whole image is there that is no older than what it is made of."""
    return _is_whole(target) and os.path.getmtime(target) >= os.path.getmtime(
        os.path.join(args.src, path)
    )


def _is_whole(path: str) -> bool:
    """A JPEG up to its end: after a power failure a renamed file may be empty all the same."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(END_OF_JPEG), os.SEEK_END)
            return file.read() == END_OF_JPEG
    except OSError:
        return False


if __name__ == "__main__":
    run_main(main, parse_args)
