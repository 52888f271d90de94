"""Mean and standard deviation of your own images, for --mean and --std.

python -m tools.statistics --data_path /data/xrays --dataset flat --in_chans 1
"""

import torch

from util.checks import image_size
from util.data.datasets import load_images
from util.data.loader import Batches
from util.data.transformed import TransformedImages
from util.data.transforms import CropAndFlip
from util.entry import run_main
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number


def parse_args(argv: list[str] | None = None):
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser)
    parser.add_argument("--images", type=number(int, 1), default=10000, help="look at so many")
    return arguments.parse_args(parser, "pretrain", argv)


def mean_std(batches: Batches, num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-channel mean and std of pixel values in 0..1 over the first `num_images` images.

    Pixels of files without a scale of their own (floats) are as they stand there, or as
    --value_range makes them.
    """
    count, first, second = 0, 0.0, 0.0
    for imgs, _ in batches.epoch():
        pixels = imgs.double() / 255 if imgs.dtype == torch.uint8 else imgs.double()
        pixels = pixels.transpose(0, 1).flatten(1)  # [C, pixels]
        first = first + pixels.sum(1)
        second = second + (pixels**2).sum(1)
        count += pixels.shape[1]
        num_images -= len(imgs)
        if num_images <= 0:
            break
    mean = first / count
    return mean, (second / count - mean**2).clamp_min(0).sqrt()


def main(args) -> None:
    size = image_size(args.input_size, 1)
    loaded = load_images(args, "pretrain", is_normalised=False)
    images = TransformedImages(loaded, CropAndFlip(size, 1.0, False), 0)
    # In the training order, so that a part of the images is a fair draw.
    batches = Batches(
        images, min(64, len(images)), training=True, num_workers=args.num_workers,
        max_bad_images=args.max_bad_images,
    )  # fmt: skip
    mean, std = mean_std(batches, args.images)
    for flag, values in (("--mean", mean), ("--std", std)):
        print(flag, *(f"{value:.4f}" for value in values.tolist()))


if __name__ == "__main__":
    run_main(main, parse_args)
