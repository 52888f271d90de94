"""What the documentation's commands name, at tiny size: data, lists and checkpoints in a folder."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
from mains import run_program
from PIL import Image
from pyarrow import ipc, parquet

RNG = np.random.default_rng(0)
LINKS = {  # other names of what is there
    "data/birds": "data/imagenet", "data/imagenet-v2": "data/imagenet/val",
    "shared/imagenet": "data/imagenet", "photos": "data/xrays-in-colour",
    "data/ADEChallengeData2016": "scenes", "data/coco/train2017": "scenes/images/training",
    "data/coco/val2017": "scenes/images/validation", "data/images": "scenes/images",
    "data/coco/annotations/instances_train2017.json": "scenes/instances_training.json",
    "data/coco/annotations/instances_val2017.json": "scenes/instances_validation.json",
    "a.json": "scene-shards/instances_train.json", "b.json": "scene-shards/instances_val.json",
    "a-0.tar": "scene-shards/train-0000.tar", "b-0.tar": "scene-shards/val-0000.tar",
}  # fmt: skip
CHECKPOINTS = {  # folder: the command that makes it, in this order
    "output_dir/pretrain": "main_pretrain",
    "output_dir/finetune": "main_finetune --finetune output_dir/pretrain/checkpoint-last.pth",
    "runs/mimae": "main_pretrain --data_path data/imagenet",
    "runs/swin": "main_pretrain --data_path data/imagenet --model simmim_swin_base",
    "runs/xrays": "main_pretrain --dataset flat --data_path data/xrays --in_chans 1 "
    "--input_size 256 384",
    "runs/ft": "main_finetune --data_path data/imagenet --finetune runs/mimae/checkpoint-last.pth",
    "runs/ade": "main_segmentation --data_path scenes --finetune runs/mimae/checkpoint-last.pth",
    "runs/coco": "main_detection --data_path scenes --finetune runs/mimae/checkpoint-last.pth",
}
COPIES = {
    "runs/mae": "runs/mimae", "pre": "runs/mimae", "shared/pre": "runs/mimae", "ft": "runs/ft",
    "scratch.pth": "output_dir/finetune/checkpoint-last.pth",
    "MIMAE.pth": "runs/mimae/checkpoint-last.pth", "MAE.pth": "runs/mimae/checkpoint-last.pth",
}  # fmt: skip


def pictures(folder: Path, count: int, first: int = 1, mode: str = "RGB") -> None:
    """Noise of 24 x 16 pixels, under names that end in a number as ImageNet's do."""
    folder.mkdir(parents=True)
    shape = (16, 24, 3) if mode == "RGB" else (16, 24)
    for number in range(first, first + count):
        pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_{number:08}.png")


def class_folders(root: Path, mode: str = "RGB") -> None:
    for split, count in (("train", 6), ("val", 2)):
        for place, name in enumerate("ab"):
            pictures(root / split / name, count, 1 + place * count, mode)


def hub_table(paths: list[Path], image: str, *labels: str) -> pyarrow.Table:
    """The images' bytes, with the place of their folder in each column of labels."""
    columns = {image: [{"bytes": path.read_bytes(), "path": path.name} for path in paths]}
    return pyarrow.table(columns | {n: ["ab".index(p.parent.name) for p in paths] for n in labels})


def hugging_face(root: Path) -> None:
    """`saved/` of save_to_disk, ImageNet's and CIFAR-100's Parquet."""
    for name in ("saved/train", "saved/validation", "data/imagenet-1k/data", "cifar100"):
        (root / name).mkdir(parents=True)
    for split, saved in (("train", "train"), ("val", "validation")):
        paths = sorted((root / "data/imagenet" / split).rglob("*.png"))
        table = hub_table(paths, "image", "label")
        parquet.write_table(table, root / f"data/imagenet-1k/data/{saved}-00000-of-00001.parquet")
        with ipc.new_stream(str(root / "saved" / saved / "data.arrow"), table.schema) as stream:
            stream.write_table(table)
        state = {"_data_files": [{"filename": "data.arrow"}]}
        (root / "saved" / saved / "state.json").write_text(json.dumps(state))
        cifar = hub_table(paths, "img", "fine_label", "coarse_label")
        parquet.write_table(cifar, root / f"cifar100/{saved}.parquet")
    (root / "saved/dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))


def own_labels(root: Path) -> None:
    """Coloured maps, class list and COCO files of images below data/images."""
    colours = np.array([[128, 64, 128], [70, 70, 70], [0, 0, 0]], dtype=np.uint8)
    (root / "palette.txt").write_text("128 64 128 road\n70 70 70 building\n0 0 0 -\n")
    (root / "data/classes.txt").write_text("road\nbuilding\n")
    for split, short in (("training", "train"), ("validation", "val")):
        folder = root / "data/annotations" / split
        folder.mkdir(parents=True)
        for path in (root / "scenes/images" / split).iterdir():
            Image.fromarray(colours[RNG.integers(0, 3, (64, 64))]).save(folder / f"{path.stem}.png")
        content = json.loads((root / f"scenes/instances_{split}.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{split}/{image['file_name']}"
        (root / f"data/{short}.json").write_text(json.dumps(content))


def write_data(root: Path) -> None:
    """All data; the working folder has to be `root`."""
    class_folders(root / "data/imagenet")
    class_folders(root / "data/xray-classes", "L")
    pictures(root / "data/xrays/deep", 6, mode="L")
    pictures(root / "data/xrays-in-colour", 4)
    names = [f"{'ab'[n > 6]}/ILSVRC2012_{n:08}.png\n" for n in range(3, 11)]
    (root / "1percent.txt").write_text("".join(names))
    shutil.copy(root / "1percent.txt", root / "10percent.txt")
    (root / "real.json").write_text(json.dumps([[0], [0], [1], []]))
    (root / "public").mkdir()
    pictures(root / "dogs", 2)
    shutil.copy(root / "dogs/ILSVRC2012_00000001.png", root / "cat.jpg")
    half = np.repeat(np.array([[0], [255]], dtype=np.uint8), 8, axis=0)
    Image.fromarray(half.repeat(16, axis=1)).save(root / "hole.png")
    hugging_face(root)
    for command in (
        "scenes scenes --images 6 --val_images 3 --size 64 --num_workers 0",
        "shards scenes scene-shards",
    ):
        name, *flags = command.split()
        assert run_program(f"tools.{name}", *flags).status == 0
    own_labels(root)
    for name, target in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(root / target, root / name)


def write_checkpoints(root: Path, tiny) -> None:
    """Train each for a step. Args: tiny: (program, words) -> a tiny command's words."""
    for folder, command in CHECKPOINTS.items():
        name, *words = command.split()
        done = run_program(name, *tiny(name, words), "--output_dir", folder)
        assert done.status == 0, done.err
    for name, source in COPIES.items():
        copy = shutil.copytree if (root / source).is_dir() else shutil.copy
        copy(root / source, root / name)


@contextlib.contextmanager
def inside(folder: Path):
    """`folder` is the working folder for a while."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
