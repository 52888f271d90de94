"""Write the report of a run anew, or a page of several runs side by side.

    python -m tools.report output_dir/pretrain
    python -m tools.report runs/mae runs/mimae --output mae_and_mimae.html

A run may be going on or broken: what its folder has is told. One file comes out, which needs
nothing else and no network: log.txt, run.jsonl, results.json and pictures are in it.
"""

import argparse
import glob
import os

from util.entry import run_main
from util.errors import UsageError
from util.evaluation.run_comparison import comparison, distinct_names
from util.flags.parser import ArgumentParser
from util.reporting.page import write_page
from util.reporting.run_folder import REPORT, RunFolder, Start, is_run, read_folder
from util.reporting.single import page_of
from util.training.checkpoint import LAST
from util.weights.checkpoint_file import read_checkpoint

COMPARISON = "comparison.html"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="a run's --output_dir")
    where = f"default: {REPORT} in the folder; of several runs {COMPARISON} here"
    add("--output", default="", metavar="FILE", help=f"({where})")
    args = parser.parse_args(argv)
    args.folders = list(dict.fromkeys(map(os.path.normpath, args.folders)))
    return args


def main(args: argparse.Namespace) -> None:
    for folder in args.folders:
        check(folder)
    runs = [read_run(folder) for folder in args.folders]
    several = len(runs) > 1
    if several:
        page = comparison(dict(zip(distinct_names(args.folders), runs, strict=True)))
    else:
        page = page_of(runs[0])
    path = args.output or (COMPARISON if several else os.path.join(args.folders[0], REPORT))
    try:
        write_page(path, page)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written ({error.strerror}): name another file, --output FILE"
        ) from None
    print(path)


def read_run(folder: str) -> RunFolder:
    """What a folder tells; of an older version's run without an end, its checkpoint tells the
    arguments."""
    run = read_folder(folder)
    path = os.path.join(folder, LAST)
    if run.about or not os.path.exists(path):
        return run
    try:
        state = read_checkpoint(path)
    except UsageError:
        return run  # it is being written, or broken
    commits = state.get("history", {}).get("commits") or [""]
    about = {"flags": state.get("args"), "flag_sources": state.get("flag_sources")}
    run.starts = [Start(about | {"commit": commits[-1]})]
    return run


def check(folder: str) -> None:
    """Raises UsageError for a folder that is no run's; the line names runs below it."""
    if is_run(folder):
        return
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is no folder: check the path")
    below = [f for p in ("*/", "*/*/") for f in _runs_in(folder, p)]
    fix = f"name those below it, as {' '.join(below[:3])}" if below else "name an --output_dir"
    raise UsageError(f"{folder} has no log.txt, run.jsonl or results.json: {fix}")


def _runs_in(folder: str, pattern: str) -> list[str]:
    found = sorted(glob.glob(os.path.join(glob.escape(folder), pattern)))
    return [path for path in found if is_run(path)]


if __name__ == "__main__":
    run_main(main, parse_args)
