"""How strong each corruption is, what it costs, and how long ImageNet-C takes to read.

python benchmarks/corruptions.py --images 16

Strength: mean squared change of values in 0..1, by severity. Costs are of one core, for one image.
On parts of scikit-learn's two photographs; the time of ImageNet-C is that of reading its 3.75
million images as stored, by calculation from what reading images of this set costs once they are
corrupted and saved as ImageNet-C's are.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import numpy as np
import torch
from data_loading import make_jpegs

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from torchvision.transforms import InterpolationMode

from tools import corrupt as corrupt_folder
from util.data.corruption.corruptions import CORRUPTIONS, SEVERITIES, corrupt, corruption_rng
from util.data.datasets import FileImages
from util.data.file_index import find_images
from util.data.robustness_sets import AsStored
from util.data.transformed import TransformedImages
from util.entry import run_main
from util.flags.parser import number

IMAGENET_C = 50_000 * len(CORRUPTIONS) * len(SEVERITIES)  # images


def strength(images: list[np.ndarray], name: str, severity: int) -> float:
    changes = []
    for index, image in enumerate(images):
        out = corrupt(image, name, severity, corruption_rng(0, index, name, severity))
        changes.append(np.mean((out / 255 - image / 255) ** 2))
    return float(np.mean(changes))


def seconds_to_read(folder: str) -> float:
    """Seconds that one core takes for an image: to read it, and the evaluation's view of it."""
    paths = find_images(folder)
    view = AsStored(folder, (224, 224), InterpolationMode.BICUBIC)
    data = TransformedImages(FileImages(folder, paths, [0] * len(paths), [""], 3), view, seed=0)
    started = time.process_time()
    for index in range(len(paths)):
        data[0, index]
    return (time.process_time() - started) / len(paths)


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(folder, args.images)
        paths = find_images(folder)
        images = [corrupt_folder.load(f"{folder}/{path}", 3, False) for path in paths]
        print("| | " + " | ".join(map(str, SEVERITIES)) + " | ms |")
        print("|---" * (len(SEVERITIES) + 2) + "|")
        for name in CORRUPTIONS:
            corrupt(images[0], name, 1, 0)  # what is made once
            started = time.process_time()
            changes = [f"{strength(images, name, severity):.4f}" for severity in SEVERITIES]
            cost = (time.process_time() - started) / len(images) / len(SEVERITIES)
            print(f"| {name} | {' | '.join(changes)} | {1000 * cost:.1f} |")
        with tempfile.TemporaryDirectory() as made:
            words = [folder, f"{made}/c", "--num_workers", "0"]
            corrupt_folder.main(corrupt_folder.parse_args(words))
            cost = seconds_to_read(f"{made}/c")
    hours = IMAGENET_C * cost / 3600
    print(
        f"read, as stored: {1 / cost:.0f} images/s of one core; ImageNet-C: {hours:.1f} hours of "
        f"one core, {hours / 16:.2f} of 16"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=number(int, 2), default=16)
    run_main(main, parser.parse_args)
