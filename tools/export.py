"""Write a checkpoint as a folder that timm, Hugging Face's transformers or a server reads.

python -m tools.export output_dir/finetune/checkpoint-last.pth exported --to timm

CHECKPOINT is one of this project, or of any other layout in encoders/layouts.py. OUT gets the
weights with what their library reads beside them, and a model card, README.md. Each export is
loaded again and compared with the checkpoint's model before OUT has its name. docs/export.md says
what each target holds.
"""

import argparse
import logging
import shlex
import sys

from exports import card, folder
from exports.source import Source
from util.entry import run_main
from util.errors import UsageError
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging

log = logging.getLogger(__name__)

TARGETS = ("timm", "huggingface", "safetensors", "onnx", "torch")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("checkpoint", metavar="CHECKPOINT", help="a file, or a model's folder")
    add("out", metavar="OUT", help="the folder that is written: a new one")
    add("--to", choices=TARGETS, required=True, help="whose layout it gets")
    add("--encoder_only", action="store_true",
        help="leave out the decoder, head or segmenter that the checkpoint has")
    add("--input_size", type=number(int, 1), nargs="+", metavar="PX",
        help="of images: one number, or height and width; positions are interpolated (default: the "
        "checkpoint's)")
    add("--mean", type=float, nargs="+", help="per channel, in place of the file's")
    add("--std", type=number(float, 1e-6), nargs="+", help="per channel, in place of the file's")
    add("--num_heads", type=number(int, 1), help="attention heads, where the file does not tell")
    add("--license", default="", metavar="NAME",
        help="of the weights, for the model card, as cc-by-nc-4.0 (default: unknown)")
    add("--overwrite", action="store_true",
        help="replace what an earlier export has written to OUT; other files in it stay")
    # fmt: on
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "-m", "tools.export", *(argv or sys.argv[1:])])
    return args


def main(args: argparse.Namespace) -> None:
    setup_logging()
    card.check_license(args.license)
    folder.check_free(args.out, args.overwrite)
    try:
        source = Source(
            args.checkpoint, args.encoder_only, args.input_size, args.mean, args.std, args.num_heads
        )
        write = writer(args.to)
        with folder.written_aside(args.out, args.overwrite) as (aside, about):
            written = write(source, aside)
            card.write(source, written, aside, args.license, args.command)
            about |= {"to": args.to, "differences": written.differences}
            about |= {"classes": source.classes} if source.classes else {}
    except UsageError as error:
        raise UsageError(str(error).replace("--finetune ", "CHECKPOINT ")) from None
    told = [f"{name} within {value:.1e}" for name, value in written.differences.items()]
    for note in written.notes:
        log.warning("%s", note)
    print(f"{args.out}: {source.kind} for {written.library}; {', '.join(told) or 'not compared'}")
    print("\n".join(line.replace("OUT", shlex.quote(args.out)) for line in written.load))


def writer(target: str):
    """The function that writes a target's files: (source, folder) -> `exports.result.Written`."""
    if target == "timm":
        from exports import to_timm as found
    elif target == "huggingface":
        from exports import to_huggingface as found
    elif target == "safetensors":
        from exports import to_safetensors as found
    elif target == "onnx":
        from exports import to_onnx as found
    else:
        from exports import to_torch as found
    return found.write


if __name__ == "__main__":
    run_main(main, parse_args)
