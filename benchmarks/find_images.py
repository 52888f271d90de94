"""Seconds until all images of a large folder are found: torchvision and ours, in turns.

python benchmarks/find_images.py --images 1300000 --cold --rounds 3

On empty files that it makes in 1000 class folders. With --cold (as root) the kernel forgets all
files and folders before each reading, which slows whatever else the machine does.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

from torchvision.datasets import ImageFolder

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from util.data.file_index import find_images
from util.flags.parser import number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--images", type=number(int, 1000), default=100_000)
    parser.add_argument("--folder", help="where to make them; default: the temporary folder")
    parser.add_argument("--cold", action="store_true", help="drop the machine's caches first")
    parser.add_argument("--rounds", type=number(int, 1), default=1)
    # fmt: on
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        for number_of_class in range(1000):
            folder = f"{root}/train/n{number_of_class:08d}"
            os.makedirs(folder)
            for image in range(args.images // 1000):
                os.mknod(f"{folder}/n{number_of_class:08d}_{image}.JPEG")
        plans = {"torchvision's ImageFolder": ImageFolder, "ours": find_images}
        for name, find in list(plans.items()) * args.rounds:
            if args.cold:
                drop_caches()
            started = time.perf_counter()
            count = len(find(f"{root}/train"))
            seconds = time.perf_counter() - started
            print(f"{name:28s}{seconds:8.2f} s for {count} images", flush=True)


def drop_caches() -> None:
    """Make the kernel forget what it has read from disks."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


if __name__ == "__main__":
    main()
