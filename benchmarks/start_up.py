"""Seconds and memory until large sets are open, for the first time and for the second.

python benchmarks/start_up.py --images 1300000 --coco_images 118000 --annotations 860000

On empty files in 1000 class folders, and on a JSON as large as COCO's, which it makes in the
temporary folder and deletes. Each start is of --ranks processes. Memory is what opening adds to a
rank: its own, and all that is resident, which includes the mapped index that ranks share; and the
most that was resident meanwhile.
"""

import argparse
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from util.cluster import distributed
from util.data import kept_index
from util.data.datasets import load_images
from util.data.dense.coco import load_coco
from util.flags.parser import number

CLASSES, POINTS = 1000, 28  # polygons of COCO have 28 points on average
SIZE = 480, 640


def make_tree(root: str, images: int) -> None:
    for label in range(CLASSES):
        folder = f"{root}/train/n{label:08d}"
        os.makedirs(folder)
        for image in range(images // CLASSES):
            os.mknod(f"{folder}/n{label:08d}_{image}.JPEG")


def make_coco(root: str, images: int, annotations: int) -> None:
    """A JSON of round objects, and image files that are empty."""
    rng = np.random.default_rng(0)
    os.makedirs(f"{root}/annotations")
    os.makedirs(f"{root}/train2017")
    listed = [{"id": i + 1, "file_name": f"{i + 1:012d}.jpg", "height": SIZE[0], "width": SIZE[1],
               "date_captured": "2013-11-14 17:02:52"} for i in range(images)]  # fmt: skip
    for image in listed:
        os.mknod(f"{root}/train2017/{image['file_name']}")
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(80)]
    head = json.dumps({"images": listed, "categories": categories})
    turn = np.arange(POINTS) * 2 * np.pi / POINTS
    with open(f"{root}/annotations/instances_train2017.json", "w") as file:
        file.write(head[:-1] + ', "annotations": [')
        for i in range(annotations):
            radius = rng.uniform(5, 100)
            x, y = rng.uniform(radius, SIZE[1] - radius), rng.uniform(radius, SIZE[0] - radius)
            points = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1)
            about = {
                "id": i + 1, "image_id": i % images + 1, "category_id": i % 80 + 1, "iscrowd": 0,
                "area": round(np.pi * radius**2, 2),
                "bbox": [round(v, 2) for v in (x - radius, y - radius, 2 * radius, 2 * radius)],
                "segmentation": [points.ravel().round(2).tolist()],
            }  # fmt: skip
            file.write(", " * (i > 0) + json.dumps(about))
        file.write("]}")


def memory() -> np.ndarray:
    """This process's own memory and all that it has resident, in MiB."""
    with open("/proc/self/smaps_rollup") as file:
        kib = {line.split(":")[0]: int(line.split()[1]) for line in file if line.endswith("kB\n")}
    return np.array([kib["Private_Clean"] + kib["Private_Dirty"], kib["Rss"]]) / 1024


def open_set(kind: str, root: str) -> None:
    """One rank: open a set and say what it took."""
    kept_index.SETTLED = 0  # nothing else changes these files
    distributed.init_process_group("cpu", 30)
    args = argparse.Namespace(
        dataset="image_folder", data_path=root, in_chans=3, subset_file="", train_fraction=1.0,
        download=False, mean=[0.5] * 3, std=[0.5] * 3, value_range=None, empty_images=False,
        train_json=None, train_images=None,
    )  # fmt: skip
    before, started = memory(), time.perf_counter()
    images = load_images(args, "pretrain") if kind == "folder" else load_coco(args, "train")[0]
    seconds = time.perf_counter() - started
    own, resident = memory() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before[1]
    print(f"{seconds} {own} {resident} {peak} {len(images)}", flush=True)
    distributed.shutdown()


def start(kind: str, root: str, ranks: int, cache: str) -> list[float]:
    """The slowest rank's seconds, the largest memories of one, and the number of images."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(ranks):
        names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, MASTER_PORT=port,
                     MASTER_ADDR="127.0.0.1", XDG_CACHE_HOME=cache)  # fmt: skip
        environment = os.environ | {name: str(value) for name, value in names.items()}
        command = [sys.executable, __file__, "--open", kind, root]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
    lines = [process.communicate()[0] for process in processes]
    found = np.array([[float(word) for word in line.split()] for line in lines])
    return found.max(0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--images", type=number(int, 0), default=100_000, help="0: no folder")
    parser.add_argument("--coco_images", type=number(int, 0), default=10_000, help="0: no COCO")
    parser.add_argument("--annotations", type=number(int, 1), default=70_000)
    parser.add_argument("--ranks", type=number(int, 1), default=2)
    parser.add_argument("--folder", help="where to make them; default: the temporary folder")
    parser.add_argument("--open", nargs=2, metavar=("KIND", "ROOT"), help=argparse.SUPPRESS)
    # fmt: on
    args = parser.parse_args()
    if args.open:
        return open_set(*args.open)
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        kinds = []
        if args.images:
            make_tree(f"{made}/folder", args.images)
            kinds.append("folder")
        if args.coco_images:
            make_coco(f"{made}/coco", args.coco_images, args.annotations)
            kinds.append("coco")
        for kind in kinds:
            for time_ in ("first", "second"):
                seconds, own, resident, peak, count = start(
                    kind, f"{made}/{kind}", args.ranks, f"{made}/cache"
                )
                print(
                    f"{kind:8s}{time_:8s}{seconds:8.2f} s, a rank's own memory {own:7.0f} MiB, "
                    f"resident {resident:7.0f} MiB, at most {peak:7.0f} MiB, {count:.0f} images, "
                    f"{args.ranks} ranks", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main()
