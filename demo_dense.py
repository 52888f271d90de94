"""Dense tasks in minutes, on a CPU: which garment is where, learnt from 16 scenes.

By an encoder that was pre-trained on scenes without labels, and two controls: its initialisation, 0
steps, and an untrained encoder, the mains' own random weights; on three seeds. `frozen` classifies
the encoder's patches, `segmentation` and `detection` fine-tune it. Runs the mains as a user would
and prints what they wrote to results.json. What they print themselves goes to
demo_output/NAME.log. All tasks, as in RESULTS.md, take half an hour:
    python demo_dense.py --tasks frozen segmentation detection
"""

import argparse
import glob
import json
import os
import shutil
import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor

from PIL import Image

from demo import CORES, OUTPUT, folder_of, run
from tools import scenes
from util.data.dense.ade20k import Labels, load_mapped_images, read_labels
from util.data.dense.coco import load_coco
from util.data.dense.jitter import View
from util.evaluation.dense.detections import draw_detections
from util.evaluation.dense.label_pictures import comparison_sheet
from util.evaluation.pictures import picture_sheet
from util.reporting.numbers import half_interval

SIZE = 56  # pixels: 8 x 8 patches of 7, 2 x 2 garments
UNLABELLED, LABELLED = f"{OUTPUT}/scenes", f"{OUTPUT}/labelled_scenes"
CLASSES = f"{LABELLED}/classes_and_ground.txt"
VALIDATION = "instances_validation.json"
TITLES = {
    "frozen": "mIoU (%), frozen patches",
    "segmentation": "mIoU (%) after iterations",
    "detection": "AP (%) of detection",
}
DONE = {"frozen": "frozen", "segmentation": "segmented", "detection": "detected"}
PICTURES = {task: f"{OUTPUT}/{task}.png" for task in ("segmentation", "detection")}
GREY = "--in_chans 1 --mean 0.2 --std 0.3 --num_workers 0"
MAE = "--num_masks 1 --lambda_max 0 --lambda_min 0"
# At equal masked samples: four masks of 16 images a step, or one mask of 64.
PRETRAIN = {
    "MI-MAE": "--epochs 4 --warmup_epochs 10% --batch_size 16 --num_masks 4",
    "MAE": f"--epochs 16 --warmup_epochs 10% --batch_size 64 {MAE}",
    "initialisation": f"--epochs 0 --warmup_epochs 0 {MAE}",
}
PRETRAIN_ALL = (
    f"main_pretrain.py --dataset flat --data_path {UNLABELLED}/images/training --input_size {SIZE} "
    "--model mimae_vit_tiny_patch7 --min_crop 0.8 --opt muon --lr 1e-2 --max_steps 1488 "
    f"--amp bf16 {GREY}"
)
EVALUATE = (
    f"--names encoder --only --dense {LABELLED} --classes {CLASSES} --first_class 0 "
    f"--model vit_tiny_patch7 --input_size {SIZE} --dataset fashion_mnist --download {GREY}"
)
SEGMENT = (
    f"main_segmentation.py --data_path {LABELLED} --classes {CLASSES} --first_class 0 "
    f"--model vit_tiny_patch7 --input_size {SIZE} --stride {SIZE} --decoder_channels 32 "
    "--batch_size 8 --iterations 300 --eval_every 150 --warmup_iterations 30 --lr 2e-3 "
    f"--layer_decay 0.8 --drop_path 0 --scales 1 1 --no-flip --max_class_share 1 --amp bf16 {GREY}"
)
DETECT = (
    f"main_detection.py --data_path {LABELLED} --train_json instances_training.json "
    f"--val_json {VALIDATION} --model vit_tiny_patch7 --input_size {SIZE} "
    "--batch_size 2 --iterations 400 --eval_every 400 --warmup_iterations 20 --lr 1e-3 "
    "--lr_schedule cosine --layer_decay 0.8 --drop_path 0 --scales 1 1 --no-flip --amp bf16 "
    f"{GREY}"
)
APS = ("box_AP", "box_AP50", "mask_AP", "mask_AP50")
CONTROLS = ("initialisation", "untrained")


def write_scenes() -> None:
    """Scenes to pre-train on, and a few with labels, of other garments of Fashion-MNIST."""
    for folder, flags in (
        (UNLABELLED, "--images 6000 --val_images 1"),
        (LABELLED, "--images 16 --val_images 200 --seed 1"),
    ):
        flags += f" --source fashion_mnist --download --tiles {SIZE // 2} --size {SIZE}"
        scenes.main(scenes.parse_args([folder, *flags.split()]))


def pretrain(encoder: str, seed: int) -> str:
    """Pre-train an encoder; its checkpoint."""
    name = f"pretrained {encoder} {seed}"
    run(name, f"{PRETRAIN_ALL} {PRETRAIN[encoder]} --seed {seed}")
    return f"{folder_of(name)}/checkpoint-last.pth"


def train(task: str, encoder: str, seed: int, pretrained: Future[str] | None) -> dict:
    """Fine-tune for a task or evaluate for `frozen`, from a checkpoint if there is one.

    Returns:
        mIoU by the frozen patches' classifier, or by the iterations after which a segmenter was
        evaluated; a detector's AP by name.
    """
    name = f"{DONE[task]} {encoder} {seed}"
    if task == "frozen":
        shutil.rmtree(folder_of(name), ignore_errors=True)  # other weights'
        checkpoint = pretrained.result() if pretrained else "untrained"
        found = run(name, f"main_evaluate.py {checkpoint} {EVALUATE} --seed {seed}")
        return {kind: found[f"encoder, dense {kind}, mIoU"] for kind in ("k-NN", "logistic")}
    finetune = f"--finetune {pretrained.result()}" if pretrained else ""
    if task == "detection":
        found = run(name, f"{DETECT} {finetune} --seed {seed}")
        return {name: found[f"test_{name}"] for name in APS}
    run(name, f"{SEGMENT} {finetune} --seed {seed}")
    with open(f"{folder_of(name)}/log.txt") as file:
        rounds = [json.loads(line) for line in file]
    return {line["steps"]: line["test_mIoU"] for line in rounds}


def train_all(args: argparse.Namespace) -> dict[str, dict[tuple[str, int], dict]]:
    """By task, then by encoder and seed: the scores. What takes longest begins first."""
    with ThreadPoolExecutor(CORES) as pool:
        pretrained = {
            (encoder, seed): pool.submit(pretrain, encoder, seed)
            for encoder in args.encoders
            if encoder in PRETRAIN
            for seed in args.seeds
        }
        jobs = {
            (task, encoder, seed): pool.submit(
                train, task, encoder, seed, pretrained.get((encoder, seed))
            )
            for encoder in sorted(args.encoders, key=CONTROLS.__contains__, reverse=True)
            for task in args.tasks
            for seed in args.seeds
        }
        return {
            task: {key[1:]: job.result() for key, job in jobs.items() if key[0] == task}
            for task in args.tasks
        }


def predict(task: str, encoder: str, seed: int) -> str:
    """Predictions for the validation scenes; their folder."""
    mains = {"segmented": "main_segmentation.py", "detected": "main_detection.py --min_score 0.3"}
    trained = f"{folder_of(f'{task} {encoder} {seed}')}/checkpoint-last.pth"
    name = f"predicted {task} {encoder}"
    run(name, f"{mains[task]} --predict {LABELLED}/images/validation --resume {trained}")
    return folder_of(name)


def draw_segmented(encoders: list[str], seed: int, rows: int = 6) -> None:
    """Image, truth and what each segmenter says, of the first validation scenes."""
    labels = read_labels(LABELLED, CLASSES, 0, "")
    truth = load_mapped_images(LABELLED, "validation", labels, 3)
    pairs = [truth.read(i) for i in range(rows)]
    columns = {"truth": [target for _, target in pairs]}
    for encoder in encoders:
        files = sorted(glob.glob(f"{predict('segmented', encoder, seed)}/labels/*.png"))
        columns[encoder] = [labels.read(file) for file in files[:rows]]
    # The ground stays clear.
    columns = {name: [classes - 1 for classes in maps] for name, maps in columns.items()}
    sheet = comparison_sheet([image for image, _ in pairs], columns, Labels(labels.classes[1:]))
    sheet.save(PICTURES["segmentation"])


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
    picture_sheet(columns).save(PICTURES["detection"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--encoders", nargs="+", default=["MAE", *CONTROLS],
        choices=[*PRETRAIN, "untrained"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", default=["frozen"], choices=[*TITLES])
    # fmt: on
    args = parser.parse_args()
    started = time.monotonic()
    os.makedirs(OUTPUT, exist_ok=True)
    write_scenes()
    for task, scores in train_all(args).items():
        if task in PICTURES:
            draw = {"segmentation": draw_segmented, "detection": draw_detected}[task]
            draw(args.encoders, args.seeds[0])
            print(PICTURES[task])
        print("\n" + "\n".join(table(TITLES[task], scores, args.encoders, args.seeds)))
    print(f"{time.monotonic() - started:.0f} seconds")


def table(title: str, scores: dict, encoders: list[str], seeds: list[int]) -> list[str]:
    """Lines of mean and deviation over the seeds, and of what pre-training gains over each
    control, with the 95 % interval of its mean by Student's t; `scores` by (encoder, seed)."""
    columns = list(scores[encoders[0], seeds[0]])
    rows = {name: [[scores[name, seed][c] for seed in seeds] for c in columns] for name in encoders}
    lines = [f"{title:28s}" + "".join(f"{column!s:>16s}" for column in columns)]
    for name, values in rows.items():
        lines.append(f"{name:28s}" + "".join(f"{cell(v, deviation(v)):>16s}" for v in values))
    pairs = [(n, c) for n in encoders for c in CONTROLS if n not in CONTROLS and c in encoders]
    for name, control in pairs:
        gains = [
            [a - b for a, b in zip(*both, strict=True)]
            for both in zip(rows[name], rows[control], strict=True)
        ]
        halves = [half_interval(gain) if len(seeds) > 1 else 0.0 for gain in gains]
        cells = [f"{cell(*both, '+'):>16s}" for both in zip(gains, halves, strict=True)]
        lines.append(f"{f'{name} - {control}':28s}" + "".join(cells))
    return lines


def cell(values: list[float], spread: float, sign: str = "") -> str:
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {spread:.1f}" if len(values) > 1 else mean


def deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
