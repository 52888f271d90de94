"""One set from each source: every main takes each, and has the same numbers."""

import contextlib
import io

import pyarrow
import pytest
from pyarrow import ipc, parquet

from tools import shards
from util.entry import run_main

SOURCES = ("image_folder", "shards", "csv", "parquet", "arrow", "cache")
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
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        table = pyarrow.table({"image": images, "label": [path.parent.name for path in paths]})
        parquet.write_table(table, root / f"{split}.parquet", row_group_size=5)
        with ipc.new_stream(str(root / f"{split}.arrow"), table.schema) as stream:
            stream.write_table(table, max_chunksize=5)
    assert len(list((root / "shards").glob("train-*.tar"))) > 4
    places = {"image_folder": image_tree, "shards": root / "shards", "csv": root}
    found = {name: ("--dataset", name, "--data_path", path) for name, path in places.items()}
    for name in ("parquet", "arrow"):
        found[name] = ("--dataset", "hugging_face", "--data_path", f"{root}/*.{name}")
    cache = ("--cache_images", "--cache_dir", root / "cache")
    return found | {"cache": (*found["image_folder"], *cache)}


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
    assert all(one == found[0] for one in found) and len(found[0][0]) >= 2


@pytest.mark.parametrize("source", ["shards", "parquet", "cache"])
def test_a_resumed_run_goes_on_inside_its_epoch(run_main_here, sources, source):
    flags = (*sources[source], *SMALL, "--model", "vit_tiny_patch4", "--epochs", 2)
    whole = numbers(run_main_here("main_finetune", *flags))
    stopped = run_main_here("main_finetune", *flags, "--max_steps", 2)
    assert stopped.status == 0 and len(whole) == 2
    again = run_main_here("main_finetune", *flags, "--resume", "auto", folder=stopped.folder)
    assert numbers(again)[-1] == whole[-1]


def test_evaluations_take_them(run_main_here, sources):
    frozen, tested = [], {}
    for name in SOURCES:
        data = (*sources[name], "--input_size", 16, "--num_workers", 0)
        outcome = run_main_here("main_evaluate", "pixels", *data, "--only", "logistic")
        assert outcome.status == 0, outcome.err
        frozen.append([line for line in outcome.out.splitlines() if "| logistic" in line])
        if name in ("arrow", "cache"):
            continue
        tuned = run_main_here("main_finetune", *sources[name], *SMALL, "--model", "vit_tiny_patch4")
        saved = tuned.folder / "checkpoint-last.pth"
        outcome = run_main_here("main_robustness", saved, *data, "--no-corrupt", "--names", "T")
        assert outcome.status == 0, outcome.err
        tested[name] = outcome.results()[f"T, {sources[name][1]}"]
    assert all(one == frozen[0] for one in frozen) and frozen[0]
    assert len(tested) == 4 and len(set(tested.values())) == 1
