"""One set as files, as shards and as a list: every main takes each, and has the same numbers."""

import contextlib
import io

import pytest

from tools import shards
from util.entry import run_main

SOURCES = ("image_folder", "shards", "csv")
SMALL = ("--input_size", 16, "--num_workers", 0, "--batch_size", 4, "--epochs", 1)


@pytest.fixture(scope="session")
def sources(image_tree, tmp_path_factory) -> dict:
    """The flags of each source."""
    root = tmp_path_factory.mktemp("sources")
    with contextlib.redirect_stdout(io.StringIO()):
        words = [str(image_tree), str(root / "shards"), "--shard_mb", "0.001"]
        run_main(shards.main, lambda: shards.parse_args(words))
    for split in ("train", "val"):
        paths = sorted((image_tree / split).rglob("*.png"))
        lines = [f"{path},{path.parent.name}\n" for path in paths]
        (root / f"{split}.csv").write_text("path,label\n" + "".join(lines))
    assert len(list((root / "shards").glob("train-*.tar"))) > 4
    places = {"image_folder": image_tree, "shards": root / "shards", "csv": root}
    return {name: ("--dataset", name, "--data_path", path) for name, path in places.items()}


def numbers(outcome) -> list[dict]:
    """What an epoch's line of the log tells, but for times."""
    assert outcome.status == 0, outcome.err
    return [{k: v for k, v in line.items() if k.startswith(("train_", "test_"))}
            for line in outcome.log()]  # fmt: skip


@pytest.mark.parametrize(
    ("main", "flags"),
    [
        ("main_pretrain", ("--model", "mimae_vit_tiny_patch4", "--knn_every", 1)),
        ("main_finetune", ("--model", "vit_tiny_patch4")),
        ("main_linprobe", ("--model", "vit_tiny_patch4", "--train_fraction", 0.5)),
    ],
)
def test_training_has_the_same_numbers(run_main_here, sources, main, flags):
    found = [numbers(run_main_here(main, *sources[name], *SMALL, *flags)) for name in SOURCES]
    assert found[0] == found[1] == found[2] and len(found[0][0]) >= 2


def test_a_resumed_run_of_shards_goes_on_inside_its_epoch(run_main_here, sources):
    flags = (*sources["shards"], *SMALL, "--model", "vit_tiny_patch4", "--epochs", 2)
    whole = numbers(run_main_here("main_finetune", *flags))
    stopped = run_main_here("main_finetune", *flags, "--max_steps", 2)
    assert stopped.status == 0 and len(whole) == 2
    again = run_main_here("main_finetune", *flags, "--resume", "auto", folder=stopped.folder)
    assert numbers(again)[-1] == whole[-1]


def test_evaluations_take_them(run_main_here, sources):
    frozen, tested = [], []
    for name in SOURCES:
        data = (*sources[name], "--input_size", 16, "--num_workers", 0)
        outcome = run_main_here("main_evaluate", "pixels", *data, "--only", "logistic")
        assert outcome.status == 0, outcome.err
        frozen.append([line for line in outcome.out.splitlines() if "| logistic" in line])
        tuned = run_main_here("main_finetune", *sources[name], *SMALL, "--model", "vit_tiny_patch4")
        saved = tuned.folder / "checkpoint-last.pth"
        outcome = run_main_here("main_robustness", saved, *data, "--no-corrupt", "--names", "T")
        assert outcome.status == 0, outcome.err
        tested.append(outcome.results()[f"T, {name}"])
    assert frozen[0] == frozen[1] == frozen[2] != []
    assert tested[0] == tested[1] == tested[2]
