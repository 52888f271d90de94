"""Our pre-training step beside those of others' MAE, in turns: time and memory of a masked sample.

pip install -r benchmarks/peers/requirements.txt
python benchmarks/peers/pretraining.py --official ../mae --out pretraining

Beside MAE's official code, transformers, lightly and stable-pretraining, as far as they are
installed. Every contestant trains the same sizes on as many masked samples a step, in a process of
its own; a table says what it computes, and in what that differs from ours. The first row is ours
with one mask, MAE, to which the others are compared.
"""

import argparse
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from benchmarks.gpu.record import Rows, table
from benchmarks.peers import autoencoders, turns
from benchmarks.peers.same_work import table_of_work
from benchmarks.peers.turns import Entrant, is_installed
from benchmarks.pretrain_step import MODELS
from benchmarks.step_facts import add_timing_flags
from util.errors import UsageError
from util.flags.parser import number

PEERS = ("mimae", "official", "transformers", "lightly", "stable-pretraining")
PACKAGES = ("transformers", "lightly", "stable-pretraining")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--model", choices=MODELS, default="small")
    add("--samples", type=number(int, 1), default=8, help="masked samples per step")
    add("--num_masks", type=number(int, 2), default=4, help="masks per image of MI-MAE")
    add("--amp", choices=("none", "bf16"), nargs="+", default=["none", "bf16"],
        help="one contest each")
    add("--peers", choices=PEERS, nargs="*", default=PEERS,
        help="beside our MAE")
    add("--pairs", action="store_true",
        help="a contest of two with each, ours again in each, in place of one of all: less memory")
    add("--official", dest="against", metavar="PATH",
        help="a clone of https://github.com/facebookresearch/mae")
    add("--fused", action="store_true",
        help="give packages the fused AdamW where their example has the plain one")
    add("--out", metavar="PATH", help="write PATH.md and PATH.json")
    # fmt: on
    add_timing_flags(add, steps=1)
    parser.set_defaults(compile=False)  # for what is shared with pretrain_step.py
    return parser


def entrants(args: argparse.Namespace, amp: str) -> list[Entrant]:
    """Ours first, then those of --peers."""
    known = {
        "mimae": Entrant(f"ours, MI-MAE, {args.num_masks} masks", autoencoders.build_our_mimae),
        "official": Entrant(
            "MAE's official code", autoencoders.build_official_mae,
            is_there=args.against is not None,
            get="git clone https://github.com/facebookresearch/mae, and name it by --official",
        ),
        "transformers": Entrant(
            "transformers", autoencoders.build_transformers, is_there=is_installed("transformers")
        ),
        "lightly": Entrant(
            "lightly", autoencoders.build_lightly, is_there=is_installed("lightly")
        ),
        "stable-pretraining": Entrant(
            "stable-pretraining", autoencoders.build_stable,
            is_there=is_installed("stable_pretraining"),
        ),
    }  # fmt: skip
    chosen = [Entrant("ours, MAE", autoencoders.build_our_mae)]
    chosen += [known[name] for name in PEERS if name in args.peers]
    return [Entrant(e.name, e.build, (args, amp), e.is_there, e.get) for e in chosen]


def check(args: argparse.Namespace) -> None:
    """Raises: UsageError."""
    if args.against and not (pathlib.Path(args.against) / "models_mae.py").is_file():
        raise UsageError(f"--official {args.against} has no models_mae.py: name a clone of MAE")
    if "mimae" in args.peers and args.samples % args.num_masks:
        raise UsageError(
            f"--samples {args.samples} are not so many times --num_masks {args.num_masks}: "
            "change one of them"
        )


def compare(args: argparse.Namespace) -> None:
    """Time all, print the tables, and write what there is after each contest."""
    about = turns.about(PACKAGES)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    sections: dict[str, Rows] = {}
    data = []
    for amp in args.amp:
        name = f"ViT-{args.model}, {args.input_size} px, {args.samples} samples, "
        name += amp.replace("none", "fp32")
        ours, *others = entrants(args, amp)
        contests = [[ours, other] for other in others] if args.pairs else [[ours, *others]]
        rows, work = sections.setdefault(name, []), {}
        for contest in contests:
            found = turns.take_turns(contest, args.rounds, args.steps)
            rows += turns.compared(found, args.samples, "masked sample")[bool(rows) :]
            work |= {one.name: one.facts for one in found}
            sections[f"{name}: the work"] = table_of_work(work, args.samples)
            data.append({"name": name, "found": turns.as_data(found, args.samples)})
            if args.out:
                turns.write(args.out, about, sections, data)
        for title in (name, f"{name}: the work"):
            print(f"\n### {title}\n\n{table(sections[title])}", flush=True)


def main() -> None:
    args = get_args_parser().parse_args()
    torch.set_num_threads(args.threads)
    try:
        check(args)
        compare(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
