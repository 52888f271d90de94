"""Weights that ranks read for themselves: the same on all, or one line on all."""

import os
from pathlib import Path

import pytest
import torch
from ranks import in_ranks

import main_detection
import main_evaluate
import main_finetune
import main_linprobe
import main_robustness
import main_segmentation
from encoders.frozen import open_frozen
from encoders.load import open_dense


def opens(rank: int, main: str, folders: list[str]) -> str:
    """What a main opens first, from a path that is each node's own."""
    os.chdir(folders[rank])
    path = "weights.pth"
    if main == "main_finetune":
        args = main_finetune.parse_args(["--finetune", path])
        return main_finetune.open_checkpoint(args.finetune, args).path
    if main == "main_linprobe":
        main_linprobe.build_frozen(main_linprobe.parse_args(["--finetune", path]))
    elif main == "main_evaluate":
        args = main_evaluate.parse_args([path])
        open_frozen(args, path)
    elif main == "main_robustness":
        args = main_robustness.parse_args([path, "--dataset", "digits"])
        main_robustness.open_classifier(args, "one", path)
    else:
        module = {"main_detection": main_detection, "main_segmentation": main_segmentation}[main]
        args = module.parse_args(["--finetune", path, "--data_path", "."])
        open_dense(args, "classes", f"{main}.py")
    return path


MAINS = (
    "main_finetune", "main_linprobe", "main_evaluate", "main_robustness", "main_detection",
    "main_segmentation",
)  # fmt: skip


@pytest.fixture
def nodes(tmp_path, pretrained, finetuned):
    """(main, kinds) -> a folder for each node, whose file is whole, absent, damaged or another."""

    def make(main: str, *kinds: str) -> list[str]:
        source = finetuned if main == "main_robustness" else pretrained
        whole = (source.folder / "checkpoint-last.pth").read_bytes()
        folders = []
        for number, kind in enumerate(kinds):
            folder = tmp_path / f"node{number}"
            folder.mkdir()
            folders.append(str(folder))
            if kind != "absent":
                Path(folder, "weights.pth").write_bytes(
                    whole[:-200] if kind == "damaged" else whole
                )
            if kind == "other":
                state = torch.load(folder / "weights.pth", weights_only=True)
                next(iter(state["model"].values())).add_(1)
                torch.save(state, folder / "weights.pth")
        return folders

    return make


@pytest.mark.parametrize("main", MAINS)
@pytest.mark.parametrize(
    ("kind", "says"),
    [("whole", ""), ("absent", "rank 1: --finetune weights.pth is no checkpoint file"),
     ("damaged", "rank 1: --finetune weights.pth is"),
     ("other", "weights.pth is not the same on all ranks")],
)  # fmt: skip
def test_all_ranks_have_opened_the_same_weights_or_none(nodes, tmp_path, main, kind, says):
    if kind in ("absent", "damaged") and main not in MAINS[:2]:
        pytest.skip("all mains open them by one function: what `other` shows")
    answers = in_ranks(opens, 2, tmp_path, main, nodes(main, "whole", kind))
    if kind == "whole":
        assert answers == ["weights.pth"] * 2
        return
    assert [answer["status"] for answer in answers] == [2, 2]
    assert answers[0]["error"] == answers[1]["error"]
    assert answers[0]["error"].startswith(says)
