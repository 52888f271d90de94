"""Every recipe is read by its main, opens with what its users ask for, and says nothing twice."""

import importlib
import json
import re
from pathlib import Path

import pytest

import main_pretrain
from util.flags.args import ArgumentParser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes"
RECIPES = sorted(
    path
    for path in FOLDER.rglob("*.args")
    if path.parent.name not in ("demo", "small", "openclipart")
)
IMAGES, RATE = 1281167, 13.1e12  # ImageNet's; FLOP/s of a V100, recipes/README.md
FLOP = {"fast": 18.6e9, "vit_base": 58.0e9, "vit_small": 38.5e9, "swin_base": 68.0e9}


def named(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def header(path: Path) -> list[str]:
    """The comments that it opens with."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line[1:].strip() for line in lines[:end]]


def command(path: Path) -> list[str]:
    """The words of the one in the header."""
    text = "\n".join(header(path)).replace("\\\n", " ")
    return next(line for line in text.splitlines() if line.startswith("torchrun")).split()


def main_of(path: Path) -> str:
    return next(word for word in command(path) if word.startswith("main_")).removesuffix(".py")


def values(path: Path, words: list[str] | None = None):
    return importlib.import_module(main_of(path)).parse_args(words or [f"@{path}"])


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_its_main_reads_it_as_the_header_says(path):
    words = command(path)
    words[words.index(f"@recipes/{named(path)}")] = f"@{path}"
    words = words[words.index(f"{main_of(path)}.py") + 1 :]
    # Each checkpoint needs a name of its own.
    words = [f"{word}{i}" if word == "CHECKPOINT" else word for i, word in enumerate(words)]
    assert values(path, words).settings


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_it_opens_with_score_gpus_and_hours(path):
    text = " ".join(header(path))
    assert re.search(r"[Ee]xpected|no such row|no score|values are lost", text), text
    assert re.search(r"--nproc_per_node \d+", text)
    assert re.search(r"(\d+|One|an) hours? of one [VA]100", text), text


def is_pretraining(path: Path) -> bool:
    return main_of(path) == "main_pretrain"


@pytest.mark.parametrize("path", filter(is_pretraining, RECIPES), ids=named)
def test_its_hours_are_what_its_samples_take(path):
    args = values(path)
    model = next(name for name in FLOP if name in f"{path.name} {args.model}")
    passes = args.epochs * (args.num_masks or max(2, round(1 / (1 - args.mask_ratio))))
    hours = IMAGES * passes * FLOP[model] / RATE / 3600
    said = int(re.search(r"About (\d+) hours of one V100", " ".join(header(path)))[1])
    assert said == pytest.approx(hours, rel=0.05)


@pytest.mark.parametrize("path", filter(is_pretraining, RECIPES), ids=named)
def test_a_step_has_the_papers_masked_samples(path):
    """4096, or 2048 of SimMIM's kind, whatever the number of masks."""
    args = values(path)
    masks = args.num_masks or max(2, round(1 / (1 - args.mask_ratio)))
    step = 2048 if "simmim" in args.model else 4096
    assert args.images_per_step * masks == pytest.approx(step, rel=0.01)


def flags_of(parser: ArgumentParser, words: list[str]) -> dict[str, list[str]]:
    """The last values of each flag."""
    found: dict[str, list[str]] = {}
    for word, _ in parser._expanded(words):
        if word.startswith("--"):
            found[word] = values = []
        else:
            values.append(word)
    return found


@pytest.mark.parametrize("path", FOLDER.rglob("*.args"), ids=named)
def test_no_line_says_what_its_include_says(path):
    parser = ArgumentParser(description="")
    lines = [line for line in path.read_text().splitlines() if line and line[0] in "-@"]
    own = [line for line in lines if line.startswith("-")]
    assert len(own) == len({line.split()[0] for line in own})
    includes = [f"@{path.parent / line[1:]}" for line in lines if line.startswith("@")]
    included = flags_of(parser, includes)
    for line in own:
        flag, *said = line.split()
        assert included.get(flag) != said, f"{line} stands in what it includes already"


TABLE3 = sorted([*FOLDER.glob("table3/*.args"), *FOLDER.glob("figure2/*.args")])


@pytest.mark.parametrize("path", TABLE3, ids=named)
def test_ablations_warm_up_in_the_papers_share(path):
    """10 of 200 epochs, whatever the number of epochs that make equal samples."""
    args = values(path)
    assert args.warmup_epochs / args.epochs == pytest.approx(10 / 200)


@pytest.mark.parametrize("name", ["mimae", "mae"])
def test_the_recipes_of_clip_art_are_the_study(name):
    """1500 steps of 128 masked samples, the flags that every line of its file has."""
    args = main_pretrain.parse_args([f"@{FOLDER}/openclipart/{name}_vit_tiny.args"])
    masks = main_pretrain.build_model(args).masks.num_masks
    assert args.images_per_step * masks == 128 and args.max_steps == 1500
    lines = (ROOT / "benchmarks" / "studies" / "openclipart.jsonl").read_text().splitlines()
    study = json.loads(lines[0])["setting"]
    asked = main_pretrain.parse_args(["--dataset", "openclipart", *study["common"].split()])
    for flag in ("model", "lr", "mi_start_loss", "min_crop", "flip", "norm_pix_loss", "betas"):
        assert getattr(args, flag) == getattr(asked, flag), flag
    per_epoch = 2556 // args.images_per_step
    assert args.epochs == -(-study["steps"] // per_epoch)
    assert args.warmup_epochs == pytest.approx(study["warmup_share"] * args.epochs)
