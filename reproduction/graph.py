"""The graph of runs behind the tables' cells: pre-trainings, then evaluations of their encoders.

A run that several cells, rows or tables need is in the graph once.
"""

import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field

from reproduction import paper
from reproduction.paper import FAMILIES, Row
from reproduction.scales import MAINS, ROOT, UNTRAINED, Scale, SmallScale, recipe_word

# The kind of run, and its number in results.json, of which a column's cells are made.
CELLS = {
    "FT": ("finetune", "test_acc1"), "LIN": ("linprobe", "test_acc1"),
    "FT1%": ("one_percent", "test_acc1"), "AP box": ("detection", "test_box_AP"),
    "AP mask": ("detection", "test_mask_AP"), "mIoU": ("segmentation", "test_mIoU"),
    "top-1": ("finetune", "test_acc1"), "A": ("robustness", "{name}, ImageNet-A"),
    "C": ("robustness", "{name}, mCE"),
}  # fmt: skip
CHECKPOINT = "checkpoint-last.pth"
SIDE_BY_SIDE_JOB = "mae_and_mimae"  # of the runs on all rows of Table 5
RANDOM = "untrained"  # in place of a checkpoint, for main_evaluate


@dataclass(frozen=True)
class Job:
    """One run: a command, and the jobs whose results it reads.

    Args:
        name: its folder, relative to the graph's root. kind: a key of MAINS.
        words: the command's arguments, without the folder that it writes.
        needs: names of the jobs that have to be done before it starts.
        work: how long it takes relative to other jobs of its kind, in passes over the data.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    work: float = 1.0

    @property
    def main(self) -> str:
        """The module that runs it, `main_pretrain` for example."""
        return MAINS[self.kind]


@dataclass(frozen=True)
class Source:
    """Where a cell's number stands: under `key` in the results.json of the job named `job`."""

    job: str
    key: str


@dataclass
class Graph:
    """The jobs that were asked for and all that they need, each once, by name.

    Args:
        scale: turns recipes into commands. root: the folder of all jobs.
        checkpoints: the folder of the public checkpoints, if the user has it.
        flags: further arguments by main, put last so that they win.
    """

    scale: Scale
    root: str
    checkpoints: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def of_imagenet(self) -> bool:
        return not isinstance(self.scale, SmallScale)

    def digest(self, job: Job) -> str:
        """Of a job's command and those of all that it needs."""
        needs = [self.digest(self.jobs[name]) for name in job.needs]
        told = json.dumps([job.main, *self.arguments(job), *needs])
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    # ------------------------------------------------------------------------------------- cells

    def cell(self, row: Row, column: str, seed: int) -> Source | str:
        """Add the jobs behind a cell; where its number will stand, or why it stays empty."""
        if column not in row.columns:
            return "the paper has no such number"
        if reason := self.scale.lacks(column) or (row.recipe and self.scale.lacks("FT")):
            return reason
        kind, key = CELLS[column]
        if kind == "robustness":
            return Source(self.robustness(seed), self._robust_key(column, row.title))
        is_public = row.public and self.of_imagenet  # else a row may start from random weights
        if not row.recipe and (is_public or not row.from_scratch):
            if not row.public:
                return f"published only: {row.source}"
            if not self.of_imagenet:
                return "only with --scale imagenet, from the authors' checkpoint"
            public, path = row.public, os.path.join(ROOT, self.checkpoints, row.public.file)
            if not (self.checkpoints and os.path.exists(path)):
                return f"needs --checkpoints DIR/{public.file} ({public.layout}) from {public.url}"
            if public.layout == "BEiT" and kind == "detection":
                return "no detector is built on a BEiT, whose positions are relative"
            if row.key == "supervised" and column == "FT":
                return Source(self._top1(row, seed), f"{row.title}, ImageNet")
        return Source(self.evaluation(kind, row, seed), key)

    def _robust_key(self, column: str, name: str) -> str:
        if column == "C" and not self.of_imagenet:
            return f"{name}, mean corruption error"  # AlexNet's errors are ImageNet's
        return CELLS[column][1].format(name=name)

    # -------------------------------------------------------------------------------------- jobs

    def pretrain(self, recipe: str, seed: int) -> str:
        """Add a recipe's pre-training with this seed, and return the job's name."""
        recipe = self.scale.stand_ins.get(recipe, recipe)
        words, passes = self.scale.pretrain(recipe)
        return self._add("pretrain", recipe, seed, [recipe_word(recipe), *words], work=passes)

    def evaluation(self, kind: str, row: Row, seed: int) -> str:
        """Add an evaluation of a row's encoder, and return the job's name.

        Args:
            kind: a field of `Family`: "finetune", "linprobe", "detection" and so on.
        """
        family = FAMILIES[row.family]
        recipe, needs = getattr(family, kind), []
        words = [recipe_word(recipe)]
        words += self.scale.evaluation(kind, recipe, row.family, self.scenes())
        if kind in ("detection", "segmentation") and self.scale.scenes:
            needs.append(self._add_scenes())
        name, encoder = self._encoder(kind, row, seed, needs)
        if encoder:
            words += ["--finetune", encoder]
        elif kind != "linprobe":  # random weights have nothing that a lower rate would keep
            words += ["--layer_decay", "1"]
        return self._add(kind, name, seed, words, needs)

    def _encoder(self, kind: str, row: Row, seed: int, needs: list[str]) -> tuple[str, str]:
        """A row's encoder as (short name, checkpoint); empty checkpoint: it starts at random.

        Where a job makes the checkpoint, it is added to the graph and to `needs`.
        """
        if row.recipe:
            needs.append(self.pretrain(row.recipe, seed))
            name = self.scale.stand_ins.get(row.recipe, row.recipe)
            return name, f"{self.folder(needs[-1])}/{CHECKPOINT}"
        if row.public and self.of_imagenet:
            return row.key, f"{self.checkpoints}/{row.public.file}"
        name = f"scratch_{row.family}"
        if row.key == "supervised" and kind in ("detection", "segmentation"):
            trained = Row(name, "", from_scratch=True, family=row.family)
            needs.append(self.evaluation("finetune", trained, seed))
            return "supervised", f"{self.folder(needs[-1])}/{CHECKPOINT}"
        return name, ""

    def _top1(self, row: Row, seed: int) -> str:
        """Add a run that tests a public classifier as it is, without training."""
        words = [f"{self.checkpoints}/{row.public.file}", recipe_word("vit_base_robustness")]
        words += self.scale.evaluation("top1", "vit_base_robustness", row.family, "")
        return self._add("top1", row.key, seed, [*words, "--names", row.title])

    def robustness(self, seed: int) -> str:
        """Add a run that tests the classifiers of Table 5 on the same images; its name."""
        needs = [self.evaluation("finetune", row, seed) for row in paper.TABLE5.rows]
        encoders = [f"{self.folder(name)}/{CHECKPOINT}" for name in needs]
        return self._side_by_side("robustness", "vit_base_robustness", encoders, needs, seed)

    def frozen(self, seed: int) -> str:
        """Add a run that evaluates the frozen encoders of Table 5's rows together; its name."""
        needs: list[str] = []
        encoders = [self._encoder("", row, seed, needs)[1] or RANDOM for row in paper.TABLE5.rows]
        return self._side_by_side("evaluate", "vit_base_evaluate", encoders, needs, seed)

    def _side_by_side(
        self, kind: str, recipe: str, encoders: list[str], needs: list[str], seed: int
    ) -> str:
        words = [*encoders, recipe_word(recipe)]
        words += self.scale.evaluation(kind, recipe, "vit_base", "")
        names = [row.title for row in paper.TABLE5.rows]
        return self._add(kind, SIDE_BY_SIDE_JOB, seed, [*words, "--names", *names], needs)

    def _add_scenes(self) -> str:
        words = shlex.split(self.scale.scenes)
        self.jobs.setdefault("scenes", Job("scenes", "scenes", tuple(words)))
        return "scenes"

    def _add(
        self, kind: str, name: str, seed: int, words: list[str], needs: list[str] = (),
        work: float = 1.0,
    ) -> str:  # fmt: skip
        """Add a job unless it is in the graph already, and return its name."""
        job_name = f"seed-{seed}/{kind}/{name.replace('/', '-')}"
        words = [*words, "--seed", str(seed)]
        words += ["--resume", "auto"] if kind not in UNTRAINED else []
        words += shlex.split(self.flags.get(MAINS[kind], ""))
        self.jobs.setdefault(job_name, Job(job_name, kind, tuple(words), tuple(needs), work))
        return job_name

    # ------------------------------------------------------------------------------------ shape

    def folder(self, job: str) -> str:
        """The folder of the job with this name."""
        return f"{self.root}/{job}"

    def scenes(self) -> str:
        """The folder of the generated scenes, which holds nothing but them."""
        return f"{self.folder('scenes')}/data"

    def in_order(self) -> list[Job]:
        """All jobs in the order in which they were added, but each after those that it needs."""
        ordered: dict[str, Job] = {}

        def add(job: Job) -> None:
            for name in job.needs:
                add(self.jobs[name])
            ordered.setdefault(job.name, job)

        for job in self.jobs.values():
            add(job)
        return list(ordered.values())

    def arguments(self, job: Job) -> list[str]:
        """All arguments of a job's command, including the folder that it writes."""
        if job.kind == "scenes":
            return [self.scenes(), *job.words]
        return [*job.words, "--output_dir", self.folder(job.name)]
