"""Segmentation in minutes, on a CPU: from an encoder that was pre-trained on scenes of digits, and
from an untrained one.

Runs the mains as a user would and prints what they wrote to results.json. What they print
themselves goes to demo_output/NAME.log. `--encoders MI-MAE MAE untrained --seeds 0 1 2` is the
study in RESULTS.md.
"""

import argparse
import glob
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from demo import CORES, OUTPUT, run
from util.data import scenes
from util.data.ade20k import load_mapped_images, read_labels
from util.evaluation.label_pictures import comparison_sheet

SIZE = 70  # pixels: 10 x 10 patches of 7
UNLABELLED, LABELLED = f"{OUTPUT}/scenes", f"{OUTPUT}/labelled_scenes"
CLASSES = f"{OUTPUT}/classes.txt"
PICTURE = f"{OUTPUT}/segmentation.png"
# At equal masked samples: four masks of 32 images a step, or one mask of 128.
PRETRAIN = {
    "MI-MAE": "--epochs 4 --warmup_epochs 0.5 --batch_size 32 --num_masks 4",
    "MAE": "--epochs 16 --warmup_epochs 2 --batch_size 128 --num_masks 1 --lambda_max 0 "
    "--lambda_min 0",
}
PRETRAIN_ALL = (
    f"main_pretrain.py --dataset flat --data_path {UNLABELLED}/images/training --input_size {SIZE} "
    "--model mimae_vit_tiny_patch7 --min_crop 0.5 --lr 1e-3 --num_workers 0"
)
SEGMENT = (
    f"main_segmentation.py --data_path {LABELLED} --classes {CLASSES} --first_class 0 "
    f"--model vit_tiny_patch7 --input_size {SIZE} --decoder_channels 32 --batch_size 8 "
    "--iterations 400 --eval_every 400 --warmup_iterations 40 --lr 1e-3 --layer_decay 0.8 "
    "--scales 0.8 1.25 --no-flip --num_workers 0"
)


def write_scenes() -> None:
    """Scenes to pre-train on, and a few with labels; the ground between the digits is a class."""
    for folder, flags in (
        (UNLABELLED, "--images 3000 --val_images 1"),
        (LABELLED, "--images 400 --val_images 200 --seed 1"),
    ):
        scenes.main(scenes.parse_args([folder, "--size", str(SIZE), *flags.split()]))
    with open(f"{LABELLED}/classes.txt") as file, open(CLASSES, "w") as with_ground:
        with_ground.write("ground\n" + file.read())


def segment(encoder: str, seed: int) -> dict:
    """Pre-train the encoder, if it is one that is, and train a segmenter from it; its results."""
    name, finetune = f"{encoder} {seed}", ""
    if encoder in PRETRAIN:
        folder = f"pretrained {name}"
        run(folder, f"{PRETRAIN_ALL} {PRETRAIN[encoder]} --seed {seed}")
        finetune = f"--finetune {OUTPUT}/{folder.replace(' ', '_')}/checkpoint-last.pth"
    return run(f"segmented {name}", f"{SEGMENT} {finetune} --seed {seed}")


def draw(encoders: list[str], seed: int, rows: int = 6) -> None:
    """Image, truth and what each segmenter says, of the first validation scenes."""
    labels = read_labels(LABELLED, CLASSES, 0, "")
    truth = load_mapped_images(LABELLED, "validation", labels, 3)
    pairs = [truth.read(i) for i in range(rows)]
    columns = {"truth": [target for _, target in pairs]}
    for encoder in encoders:
        trained = f"{OUTPUT}/segmented_{encoder}_{seed}/checkpoint-last.pth"
        name = f"predicted {encoder}"
        run(name, f"main_segmentation.py --predict {LABELLED}/images/validation --resume {trained}")
        files = sorted(glob.glob(f"{OUTPUT}/{name.replace(' ', '_')}/labels/*.png"))
        columns[encoder] = [labels.read(file) for file in files[:rows]]
    comparison_sheet([image for image, _ in pairs], columns, labels).save(PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["MI-MAE", "untrained"],
                        choices=[*PRETRAIN, "untrained"])  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    started = time.monotonic()
    os.makedirs(OUTPUT, exist_ok=True)
    write_scenes()
    with ThreadPoolExecutor(CORES) as pool:
        jobs = {
            (encoder, seed): pool.submit(segment, encoder, seed)
            for seed in args.seeds
            for encoder in args.encoders
        }
        results = {key: job.result() for key, job in jobs.items()}
    draw(args.encoders, args.seeds[0])
    print(f"\n{'validation scenes, %':24s}{'mIoU':>16s}{'mIoU of digits':>20s}{'aAcc':>12s}")
    for encoder in args.encoders:
        runs = [results[encoder, seed] for seed in args.seeds]
        digits = [statistics.mean(v for k, v in r.items() if k[:4] == "IoU " and k != "IoU ground")
                  for r in runs]  # fmt: skip
        cells = [[r["test_mIoU"] for r in runs], digits, [r["test_aAcc"] for r in runs]]
        print(f"{encoder:24s}" + "".join(
            f"{mean_and_spread(values):>{width}s}"
            for values, width in zip(cells, (16, 20, 12), strict=True)
        ))  # fmt: skip
    print(f"\npicture: {PICTURE}\n{time.monotonic() - started:.0f} seconds")


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
