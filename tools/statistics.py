"""What is in a set of images: sizes, broken files, duplicates, and the numbers of --mean and --std.

python -m tools.statistics --data_path /data/xrays --dataset flat --in_chans 1

Duplicates are images of the same pixels; alike are those that are one picture, stored anew, resized
or a little brighter, but not cropped or mirrored. Both are looked for in train and val together.
"""

import csv
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from util.checks import image_size
from util.data.datasets import load_images
from util.data.duplicates import alike, same_pixels
from util.data.file_index import count_of
from util.data.image_facts import Facts, Looked, look_at
from util.data.transforms import CropAndFlip
from util.entry import run_main
from util.errors import UsageError
from util.flags import args as arguments
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging

SHOWN = 3  # names, sizes or groups in a line


def parse_args(argv: list[str] | None = None):
    parser = ArgumentParser(description=__doc__)
    arguments.add_data_flags(parser, loading=False)
    # fmt: off
    parser.add_argument("--num_workers", type=number(int, 0), default=10,
        help="processes that read images; more than there are cores are not started")
    parser.add_argument("--images", type=number(int, 1), default=10000,
        help="look at so many of each split, a fair draw: duplicates are found among those")
    parser.add_argument("--report", default="", metavar="FILE",
        help="write all that is broken or there more than once: lines kind,group,split,name,why")
    # fmt: on
    args = arguments.parse_args(parser, "pretrain", argv)
    args.settings.refuse("here, where they are measured", "mean", "std")
    folder = os.path.dirname(os.path.abspath(args.report))
    if args.report and not os.access(folder, os.W_OK):
        raise UsageError(f"--report {args.report}: {folder} cannot be written to")
    return args


def main(args) -> None:
    setup_logging()
    torch.set_num_threads(1)  # on an image's small arrays several wait for one another
    facts = Facts(CropAndFlip(image_size(args.input_size, 1), 1.0, False), args.in_chans)
    looked = []
    for name, images in _splits(args).items():
        looked.append(look_at(name, images, args.images, facts, args.num_workers))
        _tell_split(looked[-1])
    everything = _Together(looked)
    groups = {"same": everything.same(), "alike": everything.alike()}
    for kind, found in groups.items():
        _tell_groups(kind, found, everything)
    if args.report:
        _write(args.report, looked, groups, everything)
    rows = looked[0].rows
    if not len(rows):
        raise UsageError("none of the training images that were looked at can be read")
    mean = rows["first"].mean(0)
    std = np.sqrt(np.maximum(rows["second"].mean(0) - mean**2, 0))
    for flag, values in (("--mean", mean), ("--std", std)):
        print(flag, *(f"{value:.4f}" for value in values.tolist()))


def _splits(args) -> dict:
    """The images of train, and of val where there are some."""
    found = {"train": load_images(args, "pretrain", is_normalised=False)}
    if args.dataset != "flat":
        try:
            found["val"] = load_images(args, "val", is_normalised=False)
        except UsageError as error:
            print(f"val is not looked at: {error}")
    return found


class _Together:
    """The images of all splits as one: of place i the split, the name and the label."""

    def __init__(self, looked: Sequence[Looked]):
        self.looked = looked
        self.split = np.repeat(np.arange(len(looked)), [len(one.ids) for one in looked])
        self.ids = np.concatenate([one.ids for one in looked])
        self.rows = np.concatenate([one.rows for one in looked])
        self.labels = np.concatenate([one.labels() for one in looked])

    def name(self, place: int) -> str:
        return self.looked[self.split[place]].images.name(int(self.ids[place]))

    def same(self) -> list[np.ndarray]:
        return same_pixels(self.rows["digest"])

    def alike(self) -> list[np.ndarray]:
        """Groups of images of other pixels; of duplicates there is the first alone."""
        _, first = np.unique(self.rows["digest"], return_index=True)
        first = np.sort(first)
        groups = alike(self.rows["hash"][first], self.rows["small"][first])
        return [first[group] for group in groups]


# ----------------------------------------------------------------------------------- what is told


def _tell_split(one: Looked) -> None:
    images, count = one.images, len(one.rows)
    looked_at = count + len(one.broken)
    of = f" of {len(images)}" if looked_at < len(images) else ""
    print(f"{one.name}: {count_of(looked_at, 'image')}{of} looked at, {count} read")
    if one.broken:
        named = "; ".join(f"{name} ({why})" for name, why in one.broken[:SHOWN])
        print(f"  unreadable: {len(one.broken)}: {named}{'; …' * (len(one.broken) > SHOWN)}")
    if not count:
        return
    sizes = Counter(zip(one.rows["width"].tolist(), one.rows["height"].tolist(), strict=True))
    listed = [f"{w} x {h} ({100 * n / count:.3g} %)" for (w, h), n in sizes.most_common(SHOWN)]
    rest = f", and {count_of(len(sizes) - SHOWN, 'other size')}" if len(sizes) > SHOWN else ""
    print(f"  width x height: {', '.join(listed)}{rest}")
    if len(sizes) == 1:
        return
    for what, sides in (
        ("shorter side", np.minimum(one.rows["width"], one.rows["height"])),
        ("longer side", np.maximum(one.rows["width"], one.rows["height"])),
    ):
        quantiles = np.quantile(sides, (0, 0.05, 0.5, 0.95, 1)).round().astype(int).tolist()
        print(f"  {what}, least, 5 %, median, 95 %, most: {' '.join(map(str, quantiles))}")


def _tell_groups(kind: str, groups: Sequence[np.ndarray], found: _Together) -> None:
    """Say how many images are there more than once, in each split and between them."""
    what = "have the pixels of another" if kind == "same" else "look like another"
    if not groups:
        return print(f"no images {what}")
    total, more = sum(map(len, groups)), "; …" * (len(groups) > SHOWN)
    listed = "; ".join(
        " = ".join(found.name(i) for i in group[:SHOWN]) + " = …" * (len(group) > SHOWN)
        for group in groups[:SHOWN]
    )
    print(f"{total} images in {count_of(len(groups), 'group')} {what}: {listed}{more}")
    for place, one in enumerate(found.looked):
        within = sum(count for g in groups if (count := int((found.split[g] == place).sum())) > 1)
        print(f"  within {one.name}: {within}")
    across = [group for group in groups if len(np.unique(found.split[group])) > 1]
    if len(found.looked) > 1:
        count = sum(int((found.split[group] == 1).sum()) for group in across)
        print(f"  of val, in train too: {count}")
    mixed = sum(len(np.unique(found.labels[group])) > 1 for group in groups)
    if mixed:
        print(f"  groups with more than one label: {mixed}")


def _write(
    path: str, looked: Sequence[Looked], groups: dict[str, list[np.ndarray]], found: _Together
) -> None:
    try:
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            lines = csv.writer(file)
            lines.writerow(("kind", "group", "split", "name", "why"))
            for one in looked:
                lines.writerows(("unreadable", "", one.name, *about) for about in one.broken)
            for kind, of_kind in groups.items():
                lines.writerows(
                    (kind, number, looked[found.split[place]].name, found.name(place), "")
                    for number, group in enumerate(of_kind)
                    for place in group
                )
    except OSError as error:
        raise UsageError(f"--report {path} cannot be written ({error.strerror})") from None


if __name__ == "__main__":
    run_main(main, parse_args)
