"""Reproduce tables of the paper: run in order everything that they need, then fill them in.

    python reproduce.py table3a --scale demo --jobs 2
    python reproduce.py all --scale small --seeds 0 1 2 --jobs 2
    python reproduce.py table1 --imagenet IMAGENET --slurm "--nodes 2 --ngpus 8 --partition gpu"

If it is interrupted, the same command goes on where it ended. Each run's arguments and log are in
its folder below --out; the tables are in OUT/SCALE/tables.
"""

import argparse
import itertools
import logging
import os
import time

from reproduction import (
    claims,
    collect,
    figures,
    judge,
    page,
    paper,
    places,
    rows,
    run_local,
    run_slurm,
    running,
)
from reproduction.cells import fill
from reproduction.graph import Graph
from reproduction.pretraining_lines import explained_lines, share_lines
from reproduction.scales import MAINS, ROOT, SCALES, SMALL_SCALES, ImageNet, shown_path
from reproduction.state import (
    DONE,
    FAILED,
    MISSING,
    OTHER_NEEDS,
    OTHERS,
    RUNNING,
    Folder,
    JobState,
    status_lines,
)
from util.entry import run_main
from util.errors import RunError, UsageError
from util.flags.parser import ArgumentParser, number
from util.logging import setup_logging
from util.provenance import commit, is_same
from util.training.output import lock

log = logging.getLogger(__name__)

PARTS = {"table3": ("table3a", "table3b", "table3c")}
CHOICES = (*paper.TABLES, *PARTS, "loss_curves", "claims", "all")
PLACES = {
    "imagenet": "with train/ and val/", "one_percent_list": "the published list of 1 %%",
    "imagenet_a": "CLASS/IMAGE", "imagenet_c": "CORRUPTION/SEVERITY/CLASS/IMAGE",
    "coco": "COCO 2017", "ade20k": "ADEChallengeData2016",
}  # fmt: skip


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    # fmt: off
    add("table", nargs="+", choices=CHOICES, metavar="TABLE", help=", ".join(CHOICES))
    add("--rows", nargs="+", default=[], metavar="ROW",
        help="only these rows of the tables (default: all that the scale does not leave out)")
    add("--scale", choices=SCALES, default="imagenet",
        help="imagenet: the paper's runs; small: Fashion-MNIST, two cores for a night or a GPU for "
        "two hours; demo: digits, minutes")
    add("--seeds", type=number(int, 0), nargs="+", default=[0], help="of all runs")
    add("--out", default="output_dir/reproduction", help="everything is written below it")
    # fmt: on

    group = parser.add_argument_group("instead of running")
    add = group.add_mutually_exclusive_group().add_argument
    # fmt: off
    add("--dry_run", action="store_true", help="print the commands of what is missing")
    add("--status", action="store_true", help="say how far every run is, and the time left")
    add("--collect", action="store_true", help="write the tables of what is done")
    # fmt: on

    add = parser.add_argument_group("machines").add_argument
    # fmt: off
    add("--jobs", type=number(int, 1), default=1, help="runs at once, on this machine")
    add("--nproc_per_node", type=number(int, 1), default=1, help="processes of a run: its GPUs")
    add("--slurm", action="append", metavar="[MAIN=]FLAGS", help="submit to SLURM with these flags "
        "of submitit_launch.py, for all mains or one")
    add("--flags", action="append", default=[], metavar="MAIN=FLAGS",
        help='more flags for a main, as "main_pretrain=--num_workers 16"')
    # fmt: on

    add = parser.add_argument_group("data at the scale of ImageNet").add_argument
    for name, text in PLACES.items():
        add(f"--{name}", default="", help=text)
    add("--checkpoints", default="", metavar="DIR", help="of the comparison rows' public files")

    group = parser.add_argument_group("whose results count")
    add = group.add_mutually_exclusive_group().add_argument
    # fmt: off
    add("--commit", help="those of this commit (default: of the code as it is)")
    add("--any_commit", action="store_true",
        help="those of any commit, and what another one began is gone on with: its cells say so")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = get_args_parser()
    args = parser.parse_args(argv)
    if "all" in args.table:
        args.table = [*paper.TABLES, "loss_curves", "claims"]
    args.table = [name for table in args.table for name in PARTS.get(table, (table,))]
    tables = [paper.TABLES[name] for name in args.table if name in paper.TABLES]
    judged = paper.TABLES.values() if "claims" in args.table else tables
    known = {row.key: None for table in judged for row in table.rows}
    unknown = [key for key in args.rows if key not in known]
    if unknown:
        parser.error(f"--rows {' '.join(unknown)}: the rows are {', '.join(known)}")
    if args.slurm is not None and (args.jobs > 1 or args.nproc_per_node > 1):
        parser.error("--slurm has --nodes and --ngpus: leave --jobs and --nproc_per_node away")
    if args.scale in SMALL_SCALES and (given := [name for name in PLACES if getattr(args, name)]):
        parser.error(f"--{given[0]} does nothing at --scale {args.scale}: leave it away")
    args.seeds = list(dict.fromkeys(args.seeds))
    for name in ("out", "checkpoints", *PLACES):
        if getattr(args, name):
            setattr(args, name, shown_path(getattr(args, name)))
    return args


def by_main(texts: list[str]) -> dict[str, str]:
    """The flags of words MAIN=FLAGS, by main; those without a main under an empty name."""
    found: dict[str, str] = {}
    for text in texts:
        main, equals, flags = text.partition("=")
        main, flags = (main, flags) if equals and main in MAINS.values() else ("", text)
        found[main] = f"{found.get(main, '')} {flags}"
    return found


class Reproduction:
    """The tables that were asked for, and the graph of runs that they need."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self._check_places()
        self.wanted = None if args.any_commit else args.commit or commit()
        self.out = os.path.join(args.out, args.scale)
        # Asked once, before this process has the lock, which a second look would give up.
        self.is_running = running.is_locked(self.out)
        self.graph = Graph(self._scale(), self.out, args.checkpoints, self._flags())
        self.tables = {name: paper.TABLES[name] for name in args.table if name in paper.TABLES}
        self.rows = {n: rows.chosen(self.graph.scale, n, args.rows) for n in self.tables}
        # With --rows, tables that have none of them were not asked for.
        self.tables = {name: table for name, table in self.tables.items() if self.rows[name]}
        self._plan()

    def _check_places(self) -> None:
        """Look at the folders and files that were given; data only where runs will read it."""
        names = ["checkpoints"]
        if not (self.args.status or self.args.collect):
            names += PLACES
        if not self.args.status:
            names.append("out")
        places.check({name: getattr(self.args, name) for name in names})

    def _scale(self):
        if self.args.scale in SMALL_SCALES:
            if self.args.nproc_per_node > 1:
                raise UsageError(
                    f"--scale {self.args.scale} has runs for one process: take --jobs in place of "
                    '--nproc_per_node, or --slurm "--nodes 1 --ngpus 1"'
                )
            return SMALL_SCALES[self.args.scale]
        return ImageNet({n: getattr(self.args, n) for n in PLACES if getattr(self.args, n)})

    def _flags(self) -> dict[str, str]:
        found = by_main(self.args.flags)
        if "" in found:
            text = next(text for text in self.args.flags if "" in by_main([text]))
            names = ", ".join(dict.fromkeys(MAINS.values()))
            raise UsageError(f"--flags {text} is not MAIN=FLAGS with a main of {names}")
        return found

    def _plan(self) -> None:
        """Add the runs behind all cells that were asked for to the graph.

        Raises:
            UsageError: nothing can be run; it says what is missing.
        """
        reasons = {}
        for name, table in self.tables.items():
            for row, column in itertools.product(self.rows[name], table.columns):
                sources = [self.graph.cell(row, column, seed) for seed in self.args.seeds]
                if isinstance(sources[0], str) and column in row.columns:  # the same for each seed
                    reasons[sources[0]] = None
        if not self.graph.scale.lacks("FT"):
            for recipe in figures.CURVES if "loss_curves" in self.args.table else ():
                self.graph.pretrain(recipe, self.args.seeds[0])  # one curve each
            if "claims" in self.args.table:
                claims.prepare(self.graph, self.args.seeds, self.args.rows)
        if not self.graph.jobs:
            reasons = list(reasons) or [self.graph.scale.lacks("FT")]
            raise UsageError(f"nothing can be run: {'; '.join(reasons)}")

    # ------------------------------------------------------------------------------------- to run

    def states(self) -> list[JobState]:
        """How far each job is, jobs after those that they need."""
        found = []
        for job in self.graph.in_order():
            folder = Folder(self.graph, job)
            found.append(folder.state(self.wanted, running.is_alive(folder, self.is_running)))
        return found

    def run(self) -> list[str]:
        """Run or submit what is missing, and return the names of the jobs that failed.

        Raises:
            UsageError: a job's folder holds results, or a beginning, of another commit, of other
                flags or of an encoder that would be made anew; or such a job runs.
        """
        states = self.states()
        todo = {
            f.job.name for f in states if f.state in (MISSING, FAILED) and f.job.kind != "scenes"
        }
        for found in states:
            anew = sorted(todo.intersection(found.job.needs))
            if anew and (found.state == DONE or Folder(self.graph, found.job).begun_by()):
                found.state, found.detail = OTHER_NEEDS, ", ".join(anew)
        others = [found for found in states if found.state in OTHERS]
        for found in others:
            log.error("%s: %s: %s", found.job.name, found.state, found.detail)
        if others:
            flags = ", the flags of then"
            if {found.state for found in others} != {OTHER_NEEDS}:
                flags += ", --any_commit or --commit"
            raise UsageError(
                f"{others[0].job.name} is {others[0].state}, {len(others)} in all: give another "
                f"--out{flags}; or remove those folders"
            )
        missing = sum(found.state != DONE for found in states)
        if missing and self.args.commit and not is_same(self.args.commit, commit()):
            raise UsageError(
                f"--commit {self.args.commit}: {missing} of the runs are missing, and would be of "
                f"the code as it is, {commit()}: check that commit out, or add --collect"
            )
        for found in states:
            if found.state == RUNNING:
                folder = Folder(self.graph, found.job)
                running.check(folder, self.args.slurm is not None, self.args.any_commit)
        if self.args.slurm is not None:
            run_slurm.SlurmRun(self.graph, states, by_main(self.args.slurm), dry_run=False).run()
            return []
        at_once, processes = self.args.jobs, self.args.nproc_per_node
        return run_local.LocalRun(self.graph, states, at_once, processes).run()

    def dry_run(self) -> None:
        """Print the commands that `run` would start."""
        states = self.states()
        if self.args.slurm is not None:
            return run_slurm.SlurmRun(
                self.graph, states, by_main(self.args.slurm), dry_run=True
            ).run()
        for found in states:
            if found.state != DONE:
                print(run_local.shown(self.graph, found.job, self.args.nproc_per_node))

    # --------------------------------------------------------------------------------- to collect

    def collect(self) -> None:
        """Write the tables, the figures and a page of all, and print the tables."""
        folder, paths = os.path.join(self.out, "tables"), []
        os.makedirs(folder, exist_ok=True)
        states, texts, verdicts = self.states(), {}, []
        for found in states:
            if found.state in OTHERS:
                log.warning("left out: %s is %s: %s", found.job.name, found.state, found.detail)
        for name, table in self.tables.items():
            about = self.rows[name], self.args.seeds, self.wanted
            cells, scale = fill(self.graph, table, *about), self.graph.scale
            below = explained_lines(self.graph, *about)
            below += share_lines(self.graph, *about) if table.of_losses else ""
            paths += collect.write(folder, name, table, cells, scale, below)
            texts[table.title] = collect.table_lines(table, cells, scale) + below
            print(texts[table.title])
            if table.picture and any(cell.values for row in cells for cell in row):
                paths.append(os.path.join(folder, f"{name}.png"))
                figures.figure2(cells).save(paths[-1])
        if "loss_curves" in self.args.table:
            paths += self._collect_curves(folder)
        if "claims" in self.args.table:
            verdicts = judge.judge(self.graph, self.args.seeds, self.wanted, self.args.rows)
            commits = {name for found in states if found.state == DONE for name in found.commits}
            text = judge.markdown(verdicts, self.args.scale, self.args.seeds, sorted(commits))
            paths.append(os.path.join(folder, "claims.md"))
            with open(paths[-1], "w") as file:
                file.write(text)
            print(text)
            texts = {"Claims": text} | texts
        print(rows.told_left_out(self.graph.scale, self.tables, self.args.rows))
        drawn = [path for path in paths if path.endswith(".png")]
        title = f"The paper's tables, scale {self.graph.scale.name}"
        paths += page.write(folder, title, verdicts, texts, drawn, states)
        print("written:", " ".join(paths))

    def _collect_curves(self, folder: str) -> list[str]:
        logs = figures.losses(self.graph, self.args.seeds[0], self.wanted)
        if not logs:
            print("loss curves: neither pre-training is done")
            return []
        path = os.path.join(folder, "loss_curves.png")
        figures.loss_curves(logs).save(path)
        return [path]


def main(args: argparse.Namespace) -> None:
    setup_logging()
    os.chdir(ROOT)  # where the runs' own paths begin
    started = time.monotonic()
    todo = Reproduction(args)
    if args.dry_run:
        return todo.dry_run()
    if args.status:
        at_once = args.jobs if args.slurm is None else max(1, len(todo.graph.jobs))
        elsewhere = todo.graph.scale.seconds_a_run
        print("\n".join(status_lines(todo.states(), at_once, elsewhere)))
        return
    if args.collect:
        return todo.collect()
    os.makedirs(todo.out, exist_ok=True)
    with open(os.path.join(todo.out, running.LOCK), "w") as held:  # closing it gives the lock up
        if lock(held) is False and (time.sleep(1) or lock(held)) is False:  # not a mere --status
            raise UsageError(
                f"--out {args.out}: another process runs these tables: wait for it, or see --status"
            )
        todo.is_running = False  # whoever it was has ended
        failed = todo.run()
        if args.slurm is not None:
            print("submitted; see --status, and --collect at the end")
            return
        todo.collect()
    print(f"{time.monotonic() - started:.0f} seconds")
    if failed:
        raise RunError(f"{len(failed)} runs failed: {', '.join(failed)} (see --status)")


if __name__ == "__main__":
    run_main(main, parse_args)
