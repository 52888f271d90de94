"""Whether the cores can feed the GPU: images per second of the loader, against what a step takes.

JPEGs of ImageNet's mean size, made up: smooth shapes and noise, of about 110 KB each.
"""

import argparse
import json
import os
import tempfile
import time

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.record import Record, Rows, Unfinished
from benchmarks.gpu.sizes import device
from util.data import images as image_files
from util.data.image_folders import load_flat
from util.data.images import jpeg_decoder
from util.data.loader import Batches, num_cores
from util.data.transformed import TransformedImages
from util.data.transforms import CropAndFlip

NOISE = 22.0  # of 255, at which a JPEG of quality 90 has ImageNet's 110 KB


def run(record: Record, args: argparse.Namespace) -> None:
    count, seconds = (8, 0.2) if args.tiny else (512, 6.0)
    record.part("images per second", 100, lambda: rates(count, seconds))
    record.part("what a GPU takes", 1, lambda: needed(record, args.out))


def make_jpegs(folder: str, count: int) -> int:
    """Write JPEGs of 500 x 375 pixels; their mean size in bytes."""
    draw, size = np.random.default_rng(0), 0
    for i in range(count):
        coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noisy = smooth + draw.normal(0, NOISE, smooth.shape[:2])[..., None]
        path = os.path.join(folder, f"{i:04d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        size += os.path.getsize(path)
    return size // count


def rates(count: int, seconds: float) -> Rows:
    """Read, decode, crop to 224 pixels, flip, collate and copy to the device, by workers."""
    cores = num_cores()
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        size = make_jpegs(folder, count)
        images = load_flat("pretrain", folder, 3, False)
        data = TransformedImages(images, CropAndFlip((224, 224), 0.2, True), seed=0)
        for decoder in ("PIL", "torchcodec") if jpeg_decoder() else ("PIL",):
            for workers in sorted({0, 1, cores // 2, cores}):
                rate = _rate(data, decoder, workers, seconds)
                rows.append({"decoder": decoder, "workers": workers, "images/s": rate,
                             "cores": cores, "bytes per image": size})  # fmt: skip
    return rows


def _rate(data: TransformedImages, decoder: str, workers: int, seconds: float) -> float:
    """Images per second, once the workers run; a data set is read again and again."""
    found, use_cuda = jpeg_decoder, device().type == "cuda"
    if decoder == "PIL":
        image_files.jpeg_decoder = lambda: None  # which the workers inherit
    try:
        size = min(64, len(data))
        batches = Batches(data, size, True, num_workers=workers, pin_memory=use_cuda)
        for imgs, *_ in batches.epoch(0):  # the workers start
            imgs.to(device(), non_blocking=True)
        done, epoch, started = 0, 1, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for imgs, *_ in batches.epoch(epoch):
                done += len(imgs.to(device(), non_blocking=True))
            epoch += 1
        if use_cuda:
            torch.cuda.synchronize()
        return done / (time.perf_counter() - started)
    finally:
        image_files.jpeg_decoder = found


def needed(record: Record, folder: str) -> Rows:
    """Images per second that the steps of `speed` take, and the share that the loader gives.

    Raises:
        Unfinished: there are no measured steps yet.
    """
    path = os.path.join(folder, "speed.json")
    if not os.path.exists(path):
        raise Unfinished(f"{path} is not there: run `speed` first", [])
    with open(path) as file:
        parts = json.load(file)["parts"]
    best = max(row["images/s"] for row in record.rows("images per second"))
    rows: Rows = []
    for name, part in parts.items():
        taken = [row["masked/s"] / 4 for row in part.get("rows", []) if "masked/s" in row]
        if taken:
            rows.append({"step": name, "images/s taken": max(taken), "loaded": best,
                         "share": best / max(taken)})  # fmt: skip
    return rows
