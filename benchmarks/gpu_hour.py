"""What is to be measured in the minutes that a GPU is there, stage by stage.

python benchmarks/gpu_hour.py check --out gpu_hour

A stage keeps to --seconds, which it counts itself, and writes STAGE.json and STAGE.md after each of
its parts. Called again, it goes on with the parts that are missing. It needs torch, torchvision and
timm; what needs more says so and is left out. docs/gpu.md has the order and what to do afterwards.

  check     a GPU computes what the CPU computes, in each precision, compiled, within its memory
  speed     masked samples per second by model and batch, eager, compiled, as a CUDA graph
  loading   whether the cores can feed it
  scale     what NCCL and DistributedDataParallel cost in one process
  dense     a training step of detection and of segmentation
  evidence  MAE, four masks and MI-MAE at equal masked samples, several seeds
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from util.errors import UsageError
from util.flags.parser import number

STAGES = ("check", "speed", "loading", "scale", "dense", "evidence")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("stage", choices=STAGES, metavar="STAGE")
    add("--out", default="output_dir/gpu_hour", metavar="FOLDER", help="of the records")
    add("--seconds", type=number(float, 1), default=225.0, help="that this call may take")
    add("--device", choices=("auto", "cpu"), default="auto", help="cpu: as if there were no GPU")
    add("--tiny", action="store_true", help="the smallest sizes, to try the stage")
    add("--retry", action="store_true", help="parts that failed, again")
    add("--official", default="", metavar="FOLDER", help="of speed: a clone of MAE's own code")
    add("--dataset", default="fashion_mnist", help="of evidence, as main_pretrain.py has it")
    add("--data_path", default="", help="of evidence: where it is")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of evidence")
    add("--steps", type=number(int, 1),
        help="of each of its runs (default: 3744; openclipart: 6000; others: 100 epochs)")
    add("--jobs", type=number(int, 1), default=8, help="of evidence: runs at a time")
    # fmt: on
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from benchmarks.gpu import check, dense, evidence, loading, scale, speed
    from benchmarks.gpu.record import Record
    from benchmarks.gpu.sizes import machine

    stages = dict(
        check=check.run, speed=speed.run, loading=loading.run, scale=scale.run, dense=dense.run,
        evidence=evidence.run,
    )  # fmt: skip
    try:
        about = machine(args.tiny)
        record = Record(args.stage, args.out, args.seconds, about, args.retry)
        stages[args.stage](record, args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted: call it again to go on with {args.stage}", file=sys.stderr)
        sys.exit(130)
    print(f"{args.out}/{args.stage}.md")


if __name__ == "__main__":
    main()
