"""What has to run for the tables' cells: pre-trainings first, then what is made of their encoders.

A run that several cells, rows or tables need is one job.
"""

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


@dataclass(frozen=True)
class Job:
    """
    Args:
        name: its folder, below the scale's. words: its arguments but for the folder that it writes.
        needs: names of the jobs that have to be done before. work: about how long it takes, in
            passes over the data, to compare runs of one kind.
    """

    name: str
    kind: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    work: float = 1.0

    @property
    def main(self) -> str:
        return MAINS[self.kind]


@dataclass(frozen=True)
class Source:
    """A cell's: the number `key` in the results.json of `job`."""

    job: str
    key: str


@dataclass
class Graph:
    """
    Args:
        scale: at which it runs. root: the folder of all jobs. checkpoints: that of public ones.
        flags: further arguments by main, which come last.
    """

    scale: Scale
    root: str
    checkpoints: str = ""
    flags: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def of_imagenet(self) -> bool:
        return not isinstance(self.scale, SmallScale)

    # ------------------------------------------------------------------------------------- cells

    def cell(self, row: Row, column: str, seed: int) -> Source | str:
        """Where a cell's number comes from, whose jobs are added; or why it stays empty."""
        if column not in row.columns:
            return "the paper has no such number"
        if reason := self.scale.lacks(column):
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
            if row.key == "supervised" and column == "FT":
                return Source(self._top1(row, seed), f"{row.title}, ImageNet")
        return Source(self.evaluation(kind, row, seed), key)

    def _robust_key(self, column: str, name: str) -> str:
        if column == "C" and not self.of_imagenet:
            return f"{name}, mean corruption error"  # AlexNet's errors are ImageNet's
        return CELLS[column][1].format(name=name)

    # -------------------------------------------------------------------------------------- jobs

    def pretrain(self, recipe: str, seed: int) -> str:
        words, passes = self.scale.pretrain(recipe)
        return self._add("pretrain", recipe, seed, [recipe_word(recipe), *words], work=passes)

    def evaluation(self, kind: str, row: Row, seed: int) -> str:
        """A row's encoder, fine-tuned, probed, or under a detector or segmenter."""
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
        """A short name of the row's encoder, and its file or folder; `needs` grows by its job."""
        if row.recipe:
            needs.append(self.pretrain(row.recipe, seed))
            return row.recipe, f"{self.folder(needs[-1])}/{CHECKPOINT}"
        if row.public and self.of_imagenet:
            return row.key, f"{self.checkpoints}/{row.public.file}"
        name = f"scratch_{row.family}"
        if row.key == "supervised" and kind in ("detection", "segmentation"):
            trained = Row(name, "", from_scratch=True, family=row.family)
            needs.append(self.evaluation("finetune", trained, seed))
            return "supervised", f"{self.folder(needs[-1])}/{CHECKPOINT}"
        return name, ""

    def _top1(self, row: Row, seed: int) -> str:
        """The accuracy of a public classifier as it is."""
        words = [f"{self.checkpoints}/{row.public.file}", recipe_word("vit_base_robustness")]
        words += self.scale.evaluation("top1", "vit_base_robustness", row.family, "")
        return self._add("top1", row.key, seed, [*words, "--names", row.title])

    def robustness(self, seed: int) -> str:
        """The classifiers of Table 5, side by side on the same images."""
        needs = [self.evaluation("finetune", row, seed) for row in paper.TABLE5.rows]
        return self._side_by_side("robustness", "vit_base_robustness", needs, seed)

    def frozen(self, seed: int) -> str:
        """The frozen encoders of the same rows, side by side."""
        needs = [self.pretrain(row.recipe, seed) for row in paper.TABLE5.rows]
        return self._side_by_side("evaluate", "vit_base_evaluate", needs, seed)

    def _side_by_side(self, kind: str, recipe: str, needs: list[str], seed: int) -> str:
        words = [f"{self.folder(name)}/{CHECKPOINT}" for name in needs]
        words += [recipe_word(recipe), *self.scale.evaluation(kind, recipe, "vit_base", "")]
        names = [row.title for row in paper.TABLE5.rows]
        return self._add(kind, "mae_and_mimae", seed, [*words, "--names", *names], needs)

    def _add_scenes(self) -> str:
        words = shlex.split(self.scale.scenes)
        self.jobs.setdefault("scenes", Job("scenes", "scenes", tuple(words)))
        return "scenes"

    def _add(
        self, kind: str, name: str, seed: int, words: list[str], needs: list[str] = (),
        work: float = 1.0,
    ) -> str:  # fmt: skip
        """Add a job, unless it is there; its name."""
        job_name = f"seed-{seed}/{kind}/{name.replace('/', '-')}"
        words = [*words, "--seed", str(seed)]
        words += ["--resume", "auto"] if kind not in UNTRAINED else []
        words += shlex.split(self.flags.get(MAINS[kind], ""))
        self.jobs.setdefault(job_name, Job(job_name, kind, tuple(words), tuple(needs), work))
        return job_name

    # ------------------------------------------------------------------------------------ shape

    def folder(self, job: str) -> str:
        return f"{self.root}/{job}"

    def scenes(self) -> str:
        """Where the scenes are, which take no other file beside them."""
        return f"{self.folder('scenes')}/data"

    def in_order(self) -> list[Job]:
        """All jobs, each after those that it needs, as they were added otherwise."""
        ordered: dict[str, Job] = {}

        def add(job: Job) -> None:
            for name in job.needs:
                add(self.jobs[name])
            ordered.setdefault(job.name, job)

        for job in self.jobs.values():
            add(job)
        return list(ordered.values())

    def arguments(self, job: Job) -> list[str]:
        """Of the job's main, the folder that it writes included."""
        if job.kind == "scenes":
            return [self.scenes(), *job.words]
        return [*job.words, "--output_dir", self.folder(job.name)]
