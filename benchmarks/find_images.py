"""Seconds until all images of a large folder are found: torchvision, ours, ours the second time.

python benchmarks/find_images.py --images 300000

On empty files that it makes in 1000 class folders; on a local disk, where looking is cheap.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

from torchvision.datasets import ImageFolder

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from util.args import number
from util.data import file_index
from util.data.file_index import find_images


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=number(int, file_index.MIN_IMAGES), default=100_000)
    parser.add_argument("--folder", help="where to make them; default: the temporary folder")
    args = parser.parse_args()
    file_index.SETTLED_NS = 0  # the folders are new
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        os.environ["XDG_CACHE_HOME"] = root
        for number_of_class in range(1000):
            folder = f"{root}/train/n{number_of_class:08d}"
            os.makedirs(folder)
            for image in range(args.images // 1000):
                os.mknod(f"{folder}/n{number_of_class:08d}_{image}.JPEG")
        plans = {
            "torchvision's ImageFolder": ImageFolder,
            "ours": find_images,
            "ours, the second time": find_images,
        }
        for name, find in plans.items():
            started = time.perf_counter()
            found = len(find(f"{root}/train"))
            print(f"{name:28s}{time.perf_counter() - started:8.2f} s for {found} images")


if __name__ == "__main__":
    main()
