"""Images per second of one core: our pipeline against PIL + torchvision's v1 transforms.

python benchmarks/data_loading.py

Ours reads the same images from each source: files, a csv that lists them, tar shards, Hugging
Face's Parquet and Arrow (where pyarrow is installed), and a cache of decoded images.

On JPEGs of ImageNet's mean size that it makes from scikit-learn's two photographs, or on those of
--data_path. All pipelines run in this process, in turns, on one thread: read, decode, random
resized crop to 224 pixels, flip, and collate batches of 64. Normalising is the GPU's work here and
the core's there. Counted is the process's time on the core: others may use the machine.
"""

import argparse
import importlib.util
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate
from torchvision import datasets, transforms

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from tools.shards import samples_of, write_shards
from util.data import images as image_files
from util.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from util.data.file_index import find_images
from util.data.hugging_face import load_hugging_face
from util.data.image_cache import cached
from util.data.image_sets import FileImages, Images
from util.data.images import jpeg_decoder
from util.data.shards import load_shards
from util.data.table import load_table
from util.data.transformed import TransformedImages
from util.data.transforms import CropAndFlip
from util.flags.parser import number

BATCH_SIZE, SIZE, MIN_CROP = 64, 224, 0.2


def make_jpegs(folder: str, count: int) -> None:
    """Write JPEGs of 500 x 375 pixels, parts of scikit-learn's photographs, to folder/photos."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    target = pathlib.Path(folder, "photos")
    target.mkdir()
    for i in range(count):
        photo = photos[i % len(photos)]
        width = int(rng.integers(320, 4 * photo.height // 3))
        height = 3 * width // 4
        left, top = rng.integers(photo.width - width), rng.integers(photo.height - height)
        part = photo.crop((left, top, left + width, top + height))
        part.resize((500, 375), Image.BICUBIC).save(target / f"{i:04d}.jpg", quality=90)


def sources(folder: str, count: int, made: str) -> dict[str, Images]:
    """The same images from each source; what they need is written below `made`."""
    paths = find_images(folder)[:count]
    files = FileImages(folder, paths, np.zeros(len(paths)), ["photos"], 3)
    found = {"files": files}
    with open(f"{made}/train.csv", "w") as file:
        file.writelines(f'"{files.name(index)}",0\n' for index in range(len(files)))
    found["csv"] = load_table("pretrain", made, 3, False)
    write_shards(samples_of(files), len(files), f"{made}/train", 2**26)
    found["shards"] = load_shards("pretrain", f"{made}/train-*.tar", 3, False)
    if importlib.util.find_spec("pyarrow"):
        write_tables(files, made)
        for name in ("parquet", "arrow"):
            found[name] = load_hugging_face("pretrain", f"{made}/train.{name}", 3, False)
    args = argparse.Namespace(cache_images=0, cache_dir=f"{made}/cache", in_chans=3, num_workers=1,
                              input_size=[SIZE], value_range=None)  # fmt: skip
    found["cache"] = cached(files, args, SIZE / 256, MIN_CROP)
    return found


def write_tables(images: Images, made: str) -> None:
    """Write made/train.parquet and made/train.arrow as `datasets` does, 100 images at a time."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for index in range(len(images)):
        with open(images.name(index), "rb") as file:
            rows.append({"bytes": file.read(), "path": images.relative_name(index)})
    table = pyarrow.table({"image": rows, "label": [0] * len(rows)})
    parquet.write_table(table, f"{made}/train.parquet", row_group_size=100)
    with (
        pyarrow.OSFile(f"{made}/train.arrow", "wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table, max_chunksize=100)


def ours(images: Images) -> Callable[[], int]:
    data = TransformedImages(images, CropAndFlip((SIZE, SIZE), MIN_CROP, True), seed=0)
    return lambda: batches(data, [(0, i) for i in range(len(data))])


def pil_and_v1(folder: str, count: int) -> Callable[[], int]:
    crop = transforms.RandomResizedCrop(
        SIZE, scale=(MIN_CROP, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
    )
    data = datasets.ImageFolder(
        folder,
        transforms.Compose(
            [
                crop,
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        ),
    )
    return lambda: batches(data, range(min(count, len(data))))


def batches(data, items) -> int:
    """Read all items in batches, and return how many images there were."""
    for start in range(0, len(items), BATCH_SIZE):
        default_collate([data[item] for item in items[start : start + BATCH_SIZE]])
    return len(items)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--data_path", help="a folder of class folders with images")
    parser.add_argument("--images", type=number(int, BATCH_SIZE), default=256,
        help="to make, or to read")
    parser.add_argument("--rounds", type=number(int, 1), default=7)
    # fmt: on
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        os.mkdir(f"{made}/images")
        os.mkdir(f"{made}/shards")
        folder = args.data_path or f"{made}/images"
        if not args.data_path:
            make_jpegs(folder, args.images)
        by_source = sources(folder, args.images, f"{made}/shards")
        plans = {"PIL + torchvision v1": (pil_and_v1(folder, args.images), jpeg_decoder)}
        decoders = {"PIL": lambda: None}
        if jpeg_decoder() is not None:
            decoders["torchcodec"] = jpeg_decoder
        for source, images in by_source.items():
            for kind, decoder in decoders.items():
                plans[f"ours, {kind}, {source}"] = (ours(images), decoder)
        rates: dict[str, list[float]] = {name: [] for name in plans}
        for _ in range(args.rounds):
            for name, (read_all, decoder) in plans.items():
                image_files.jpeg_decoder = decoder
                started = time.process_time()
                count = read_all()
                rates[name].append(count / (time.process_time() - started))
    for name, found in rates.items():
        first = ratio(found, rates["PIL + torchvision v1"])
        files = rates.get(name.rpartition(", ")[0] + ", files")
        print(f"{name:26s}{statistics.median(found):8.0f} images/s of one core{first:8.2f} x"
              + (f"{ratio(found, files):8.2f} of files" if files else ""))  # fmt: skip


def ratio(found: list[float], base: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(found, base, strict=True))


if __name__ == "__main__":
    main()
