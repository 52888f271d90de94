"""Segmentation and detection in minutes, on a CPU: from an encoder that was pre-trained on scenes
of digits, and from an untrained one: the mains' own random weights.

Runs the mains as a user would and prints what they wrote to results.json. What they print
themselves goes to demo_output/NAME.log. `--encoders MI-MAE MAE untrained --seeds 0 1 2` is the
study in RESULTS.md.
"""

import argparse
import glob
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from demo import CORES, OUTPUT, run
from tools import scenes
from util.data.dense.ade20k import Labels, load_mapped_images, read_labels
from util.data.dense.coco import load_coco
from util.data.dense.jitter import View
from util.evaluation.dense.detections import draw_detections
from util.evaluation.dense.label_pictures import comparison_sheet
from util.evaluation.pictures import picture_sheet

SIZE = 70  # pixels: 10 x 10 patches of 7
UNLABELLED, LABELLED = f"{OUTPUT}/scenes", f"{OUTPUT}/labelled_scenes"
CLASSES = f"{LABELLED}/classes_and_ground.txt"
VALIDATION = "instances_validation.json"
PICTURES = {"segmented": f"{OUTPUT}/segmentation.png", "detected": f"{OUTPUT}/detection.png"}
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
    f"--model vit_tiny_patch7 --input_size {SIZE} --decoder_channels 32 "
    "--batch_size 8 --iterations 120 --eval_every 40 --warmup_iterations 20 --lr 2e-3 "
    "--layer_decay 0.8 --scales 0.8 1.25 --max_class_share 1 --num_workers 0"
)
DETECT = (
    f"main_detection.py --data_path {LABELLED} --train_json instances_training.json "
    f"--val_json {VALIDATION} --model vit_tiny_patch7 --input_size {SIZE} "
    "--batch_size 4 --iterations 300 --eval_every 300 --warmup_iterations 20 --lr 1e-3 "
    "--lr_schedule cosine --layer_decay 0.8 --drop_path 0 --scales 0.8 1.25 --no-flip "
    "--num_workers 0"
)
APS = ("box_AP", "box_AP50", "mask_AP", "mask_AP50")


def write_scenes() -> None:
    """Scenes to pre-train on, and a few with labels; which of ten digits something is takes more
    training than minutes allow, so all digits are one class."""
    for folder, flags in (
        (UNLABELLED, "--images 3000 --val_images 1"),
        (LABELLED, "--images 64 --val_images 100 --seed 1 --one_class digit"),
    ):
        scenes.main(scenes.parse_args([folder, "--size", str(SIZE), *flags.split()]))


def train(encoder: str, seed: int) -> tuple[dict[int, float], dict[str, float]]:
    """Pre-train the encoder, if it is one that is, and train a segmenter and a detector from it.

    Returns:
        mIoU by the iterations after which it was evaluated, and the detector's AP.
    """
    name, finetune = f"{encoder} {seed}", ""
    if encoder in PRETRAIN:
        folder = f"pretrained {name}"
        run(folder, f"{PRETRAIN_ALL} {PRETRAIN[encoder]} --seed {seed}")
        finetune = f"--finetune {OUTPUT}/{folder.replace(' ', '_')}/checkpoint-last.pth"
    run(f"segmented {name}", f"{SEGMENT} {finetune} --seed {seed}")
    with open(f"{OUTPUT}/segmented_{encoder}_{seed}/log.txt") as file:
        rounds = [json.loads(line) for line in file]
    detected = run(f"detected {name}", f"{DETECT} {finetune} --seed {seed}")
    mious = {line["steps"]: line["test_mIoU"] for line in rounds}
    return mious, {name: detected[f"test_{name}"] for name in APS}


def predict(task: str, encoder: str, seed: int) -> str:
    """Predictions for the validation scenes; their folder."""
    mains = {"segmented": "main_segmentation.py", "detected": "main_detection.py --min_score 0.7"}
    trained = f"{OUTPUT}/{task}_{encoder}_{seed}/checkpoint-last.pth"
    name = f"predicted {task} {encoder}"
    run(name, f"{mains[task]} --predict {LABELLED}/images/validation --resume {trained}")
    return f"{OUTPUT}/{name.replace(' ', '_')}"


def draw_segmented(encoders: list[str], seed: int, rows: int = 6) -> None:
    """Image, truth and what each segmenter says, of the first validation scenes."""
    labels = read_labels(LABELLED, CLASSES, 0, "")
    truth = load_mapped_images(LABELLED, "validation", labels, 3)
    pairs = [truth.read(i) for i in range(rows)]
    columns = {"truth": [target for _, target in pairs]}
    for encoder in encoders:
        files = sorted(glob.glob(f"{predict('segmented', encoder, seed)}/labels/*.png"))
        columns[encoder] = [labels.read(file) for file in files[:rows]]
    # The ground stays clear: of the classes that are drawn, digits are the first.
    columns = {name: [classes - 1 for classes in maps] for name, maps in columns.items()}
    sheet = comparison_sheet([image for image, _ in pairs], columns, Labels(["digit"]))
    sheet.save(PICTURES["segmented"])


def draw_detected(encoders: list[str], seed: int, rows: int = 6) -> None:
    """Truth and what each detector is sure of."""
    flags = dict(data_path=LABELLED, val_json=VALIDATION, val_images="", in_chans=3)
    known, _ = load_coco(argparse.Namespace(**flags), "val")
    columns: dict[str, list[Image.Image]] = {"truth": []}
    whole = View((SIZE, SIZE), (SIZE, SIZE), 0, 0, (SIZE, SIZE), flipped=False)
    for index in range(rows):
        image, (_, objects) = known.read(index)
        columns["truth"].append(draw_detections(image, whole.target(objects), known.classes))
    for encoder in encoders:
        files = sorted(glob.glob(f"{predict('detected', encoder, seed)}/pictures/*.png"))
        columns[encoder] = [Image.open(file) for file in files[:rows]]
    picture_sheet(columns).save(PICTURES["detected"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    # fmt: off
    parser.add_argument("--encoders", nargs="+", default=["MI-MAE", "untrained"],
        choices=[*PRETRAIN, "untrained"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    # fmt: on
    args = parser.parse_args()
    started = time.monotonic()
    os.makedirs(OUTPUT, exist_ok=True)
    write_scenes()
    with ThreadPoolExecutor(CORES) as pool:
        jobs = {
            (encoder, seed): pool.submit(train, encoder, seed)
            for seed in args.seeds
            for encoder in args.encoders
        }
        results = {key: job.result() for key, job in jobs.items()}
    draw_segmented(args.encoders, args.seeds[0])
    draw_detected(args.encoders, args.seeds[0])
    titles = ("mIoU (%), iterations", "AP (%) of detection")
    for number, (title, before) in enumerate(zip(titles, ("after ", ""), strict=True)):
        columns = list(results[args.encoders[0], args.seeds[0]][number])
        print(f"\n{title:24s}" + "".join(f"{f'{before}{column}':>16s}" for column in columns))
        for encoder in args.encoders:
            rows = [results[encoder, seed][number] for seed in args.seeds]
            cells = [mean_and_spread([row[column] for row in rows]) for column in columns]
            print(f"{encoder:24s}" + "".join(f"{cell:>16s}" for cell in cells))
    print(f"\npictures: {', '.join(PICTURES.values())}")
    print(f"{time.monotonic() - started:.0f} seconds")


def mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
