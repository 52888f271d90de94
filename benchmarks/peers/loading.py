"""Reading images for pre-training: our sources beside torchvision, `datasets` and webdataset.

All read the same JPEGs, cut a random part out, resize it to 224 pixels, flip half of them and give
batches of uint8 [64, 3, 224, 224]; the process is the one worker.
"""

import argparse
import glob
import os
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader

from benchmarks.peers.pairs import Entry, Pair, importing

FULL, TINY = 256, 64  # images
BATCH_SIZE, SIZE, MIN_CROP = 64, 224, 0.2
PEER = "its images become uint8 as ours do, not floats, which spares it work"
PIL = PEER + "; PIL and torchvision's v1 transforms"


def pairs(args: argparse.Namespace) -> list[Pair]:
    """One for each kind of files; the JPEGs are written below `args.made`."""
    count = TINY if args.tiny else FULL
    work = SimpleNamespace(threads=1, made=args.made, images=count)
    prepare(work)
    return [
        Pair(f"{count} JPEGs of 500 x 375 in folders", "pass", [
            Entry("ours", ours, (work, "files")),
            Entry("ours, decoded by PIL", ours, (work, "files", True), 1.8),
            Entry("torchvision, as MAE reads", folder, (work, "floats"), 2.0,
                  "PIL, and floats that are normalised"),
            Entry("torchvision, v1 transforms", folder, (work, "bytes"), 1.9, PEER),
            Entry("torchvision, v2 on tensors", tensors, (work,), 1.2, PEER),
        ]),
        Pair("the same as tar shards", "pass", [
            Entry("ours", ours, (work, "shards")),
            Entry("webdataset", shards, (work,), 1.9, PIL, ("webdataset",)),
        ]),
        Pair("the same as Parquet", "pass", [
            Entry("ours", ours, (work, "parquet"), needs=("pyarrow",)),
            Entry("Hugging Face datasets", parquet, (work,), 1.9, PIL, ("datasets",)),
        ]),
    ]  # fmt: skip


def prepare(work: SimpleNamespace) -> None:
    """Write the JPEGs, and the same as shards and tables."""
    from benchmarks.data_loading import make_jpegs, sources

    os.mkdir(f"{work.made}/images")
    os.mkdir(f"{work.made}/other")
    make_jpegs(f"{work.made}/images", work.images)
    sources(f"{work.made}/images", work.images, f"{work.made}/other")


def passes(batches):
    """Read whole passes; batches: a pass's number -> its batches, images first."""
    done = 0

    def read(times: int) -> None:
        nonlocal done
        for _ in range(times):
            for batch in batches(done):
                assert batch[0].shape[1:] == (3, SIZE, SIZE)
            done += 1

    return read


def told(batches) -> dict[str, str]:
    first = next(iter(batches(0)))[0]
    mean = first.float().mean().item()
    return {"values": f"{first.dtype}".removeprefix("torch."), "their mean": f"{mean:.0f}"}


def ours(work: SimpleNamespace, source: str, with_pil: bool = False):
    """Our reader of a source, as main_pretrain has it."""
    with importing() as libraries:
        from util.data import images as image_files
        from util.data.file_index import find_images
        from util.data.hugging_face import load_hugging_face
        from util.data.image_sets import FileImages
        from util.data.loader import Batches
        from util.data.shards import load_shards
        from util.data.transformed import TransformedImages
        from util.data.transforms import CropAndFlip

        crop = CropAndFlip((SIZE, SIZE), MIN_CROP, True)
        if with_pil:
            image_files.jpeg_decoder = lambda: None
        image_files.jpeg_decoder()

    torch.set_num_threads(work.threads)
    if source == "files":
        root = f"{work.made}/images"
        paths = find_images(root)
        images = FileImages(root, paths, [0] * len(paths), ["photos"], 3)
    elif source == "shards":
        images = load_shards("pretrain", f"{work.made}/other/train-*.tar", 3, False)
    else:
        images = load_hugging_face("pretrain", f"{work.made}/other/train.parquet", 3, False)
    loader = Batches(TransformedImages(images, crop, seed=0), BATCH_SIZE, training=True)
    return passes(loader.epoch), libraries | told(loader.epoch)


def v1(kind: str):
    """torchvision's v1 transforms of a PIL image, as MAE has them; kind: bytes or floats."""
    from torchvision import transforms

    from util.data.datasets import IMAGENET_MEAN, IMAGENET_STD

    steps = [
        transforms.RandomResizedCrop(
            SIZE, scale=(MIN_CROP, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        transforms.RandomHorizontalFlip(),
    ]
    if kind == "bytes":
        return transforms.Compose([*steps, transforms.PILToTensor()])
    normalise = transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    return transforms.Compose([*steps, transforms.ToTensor(), normalise])


def loaded(data, work: SimpleNamespace, libraries: dict, **options):
    """A DataLoader of a set whose items, or batches, are (images, classes)."""
    torch.set_num_threads(work.threads)
    loader = DataLoader(data, **options)
    return passes(lambda number: loader), libraries | told(lambda number: loader)


SHUFFLED = dict(batch_size=BATCH_SIZE, shuffle=True, drop_last=True)


def folder(work: SimpleNamespace, kind: str):
    with importing() as libraries:
        from torchvision.datasets import ImageFolder

    return loaded(ImageFolder(f"{work.made}/images", v1(kind)), work, libraries, **SHUFFLED)


def tensors(work: SimpleNamespace):
    """torchvision's decoder and v2 transforms, without PIL."""
    with importing() as libraries:
        from torchvision.datasets import ImageFolder
        from torchvision.io import ImageReadMode, decode_image
        from torchvision.transforms import InterpolationMode, v2

    steps = v2.Compose([
        v2.RandomResizedCrop(
            SIZE, scale=(MIN_CROP, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
        ),
        v2.RandomHorizontalFlip(),
    ])  # fmt: skip

    def read(path: str) -> torch.Tensor:
        return decode_image(path, ImageReadMode.RGB)

    images = ImageFolder(f"{work.made}/images", steps, loader=read)
    return loaded(images, work, libraries, **SHUFFLED)


def parquet(work: SimpleNamespace):
    with importing() as libraries:
        import datasets
        from torchvision import transforms  # noqa: F401

    transform = v1("bytes")
    data = datasets.Dataset.from_parquet(
        f"{work.made}/other/train.parquet", cache_dir=f"{work.made}/cache"
    ).cast_column("image", datasets.Image())

    def transformed(rows: dict) -> dict:
        images = [transform(image.convert("RGB")) for image in rows["image"]]
        return {"image": images, "label": rows["label"]}

    def collate(rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*((row["image"], row["label"]) for row in rows), strict=True)
        return torch.stack(images), torch.tensor(labels)

    data = data.with_transform(transformed)
    return loaded(data, work, libraries, collate_fn=collate, **SHUFFLED)


def shards(work: SimpleNamespace):
    with importing() as libraries:
        import webdataset
        from torchvision import transforms  # noqa: F401

    files = sorted(glob.glob(f"{work.made}/other/train-*.tar"))
    data = (
        webdataset.WebDataset(files, shardshuffle=False)
        .shuffle(1000).decode("pil").to_tuple("jpg", "cls").map_tuple(v1("bytes"), lambda y: y)
        .batched(BATCH_SIZE, partial=False)
    )  # fmt: skip
    return loaded(data, work, libraries, batch_size=None)
