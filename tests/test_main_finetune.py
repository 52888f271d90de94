"""Fine-tuning end to end on digits, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mains import run_in_process
from pages import check_page
from PIL import Image
from ranks import in_ranks

import main_finetune
from util.training import few_label_runs as draws
from util.training.signals import StopSignal

SHORT = ("--batch_size", 64, "--max_steps", 3, "--aa", "none", "--warmup_epochs", 0)


def test_it_learns_and_logs(finetuned):
    first, *_, last = finetuned.log()
    assert last["train_loss"] < first["train_loss"] - 0.03
    assert 13 < last["test_acc1"] <= last["test_acc5"]  # a tenth by chance
    assert last["max_acc1"] == max(line["test_acc1"] for line in finetuned.log())
    assert finetuned.results()["test_acc1"] == last["test_acc1"]
    assert "test images" in check_page(finetuned.folder / "report.html").text
    assert "new: fc_norm, head" in finetuned.out
    assert "left over: approximation, decoder_" in finetuned.out


def test_eval_reproduces_what_training_logged(run_main_here, finetuned):
    saved = finetuned.folder / "checkpoint-last.pth"
    outcome = run_main_here("main_finetune", "--eval", "--resume", saved, "--batch_size", 50)
    assert outcome.status == 0, outcome.err
    last = finetuned.log()[-1]
    assert outcome.results()["acc1"] == pytest.approx(last["test_acc1"])
    assert outcome.results()["loss"] == pytest.approx(last["test_loss"], rel=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ("--cls_token", "--mixup", 0, "--cutmix", 0, "--reprob", 0),
        ("--amp", "bf16", "--accum_iter", 2),
        ("--input_size", 8, 12, "--grad_checkpointing"),
        ("--aa", "rand-m9-mstd0.5-inc1", "--train_fraction", 0.2, "--mixup", 0.8, "--reprob", 0.25),
    ],
    ids=lambda flags: flags[0][2:],
)
def test_other_options_run_on_the_checkpoint(run_main_here, checkpoint, flags):
    outcome = run_main_here("main_finetune", "--finetune", checkpoint, *SHORT, *flags)
    assert outcome.status == 0, outcome.err
    assert outcome.log()[0]["train_loss"] > 0


def test_it_is_tested_as_often_as_asked_and_at_the_end(run_main_here):
    short = ("--train_fraction", 0.05, "--epochs", 5, "--aa", "none", "--warmup_epochs", 0)
    outcome = run_main_here("main_finetune", *short, "--test_every", 2)
    assert outcome.status == 0, outcome.err
    assert [line["epoch"] for line in outcome.log() if "test_acc1" in line] == [1, 3, 4]
    assert "test_acc1" in outcome.results()


def test_from_scratch_it_learns_faster_than_that(run_main_here):
    outcome = run_main_here(
        "main_finetune", "--epochs", 1, "--batch_size", 32, "--lr", 1e-3, "--warmup_epochs", 0.5,
        "--layer_decay", 1, "--mixup", 0, "--cutmix", 0, "--aa", "none", "--min_crop", 1,
        "--drop_path", 0, "--reprob", 0,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert outcome.log()[0]["test_acc1"] > 20


def test_bad_input_is_refused_in_one_line(refuses, tmp_path, checkpoint):
    main = "main_finetune"
    refuses(main, "--finetune", tmp_path / "absent.pth", names=("absent.pth",))
    (tmp_path / "text.pth").write_text("text")
    refuses(main, "--finetune", tmp_path / "text.pth", names=("text.pth",))
    refuses(main, "--finetune", checkpoint, "--model", "vit_tiny_patch4",
            names=("--finetune", "patch_embed.proj.weight [128, 1, 2, 2] instead of"))  # fmt: skip
    refuses(main, "--finetune", checkpoint, "--in_chans", 3, names=("--in_chans",))
    refuses(main, "--input_size", 9, names=("--input_size",))
    refuses(main, "--model", "vit_giant", names=("--model",))
    refuses(main, "--eval", names=("--eval", "--resume"))
    refuses(main, "--batch_size", 63, "--mixup", 0.8, names=("--batch_size 63", "mixup"))
    refuses(main, "--aa", "nonsense", names=("--aa nonsense",))
    refuses(main, "--batch_size", 5000, names=("--batch_size 5000",))


def test_data_without_classes_is_refused(refuses, tmp_path):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / part / "x.png")
    refuses("main_finetune", "--data_path", tmp_path, names=("--data_path", "class folder"))
    refuses("main_finetune", "--dataset", "flat", "--data_path", tmp_path,
            names=("--dataset flat", "labels"))  # fmt: skip


class Hostile:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("main", ["main_finetune", "main_linprobe"])
def test_a_hostile_checkpoint_is_refused_and_not_run(refuses, tmp_path, main):
    torch.save({"model": Hostile(tmp_path / "ran")}, tmp_path / "hostile.pth")
    refuses(main, "--finetune", tmp_path / "hostile.pth", names=("hostile.pth", "refused"))
    assert not (tmp_path / "ran").exists()


def test_an_image_folder_end_to_end(run_main_here, image_tree):
    outcome = run_main_here(
        "main_finetune", "--data_path", image_tree, "--input_size", 16, "--model",
        "vit_tiny_patch4", "--batch_size", 4, "--epochs", 1, "--num_workers", 0,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert 0 <= outcome.log()[0]["test_acc1"] <= 100 and outcome.log()[0]["steps"] == 3


def test_eval_on_other_data_than_it_was_trained_on_is_asked_for(refuses, finetuned, tmp_path):
    saved = finetuned.folder / "checkpoint-last.pth"
    state = torch.load(saved, weights_only=True)
    for change, said in (
        ({"dataset": "fashion_mnist"}, "give --dataset fashion_mnist"),
        ({"classes": [*"abcdefghij"]}, "of other classes"),
    ):
        torch.save(state | {"config": state["config"] | change}, tmp_path / "other.pth")
        refuses("main_finetune", "--eval", "--resume", tmp_path / "other.pth", names=(said,))


def test_eval_needs_a_file(refuses):
    refuses("main_finetune", "--eval", "--resume", "auto", names=("--eval", "--resume"))


# ---------------------------------------------------------------------------------- few labels

FEW = ("--train_fraction", 0.05, "--batch_size", 16, "--epochs", 2, "--warmup_epochs", 0, "--aa",
       "none", "--ema_decay", 0.8)  # fmt: skip


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    outcome = run_in_process(
        "main_finetune", *FEW, "--draws", 2, "--choose_blr", 1e-3, 1e-1, folder=folder
    )
    assert outcome.status == 0, outcome.err
    return outcome


def weights(folder) -> dict:
    return torch.load(folder / "checkpoint-last.pth", weights_only=True)


def test_draws_are_runs_of_their_own_with_a_mean(drawn, run_main_here):
    runs = [json.loads((drawn.folder / f"draw-{d}/results.json").read_text()) for d in (0, 1)]
    found, scores = drawn.results(), [run["test_acc1"] for run in runs]
    assert found["test_acc1_of_draws"] == scores
    assert found["test_acc1"] == pytest.approx(np.mean(scores))
    assert found["test_acc1_std"] == pytest.approx(np.std(scores, ddof=1))
    assert found["blr_of_draws"] == [run["flags"]["blr"] for run in runs]
    for draw, run in enumerate(runs):  # the rate that was best on the held-out part
        trials = {
            blr: json.loads((drawn.folder / f"draw-{draw}/blr-{blr}/results.json").read_text())
            for blr in (0.001, 0.1)
        }
        ranks = {blr: (t["test_acc1"], -t["test_loss"]) for blr, t in trials.items()}
        assert run["flags"]["blr"] == max(ranks, key=ranks.get)
        assert run["flags"]["draw"] == draw and run["flags"]["hold_out"] is None
        assert all(trial["flags"]["hold_out"] == 0.2 for trial in trials.values())
    files = drawn.folder.glob("draw-*/**/results.json")
    parts = [json.loads(file.read_text())["seconds"] for file in files]
    assert len(parts) == 6 and found["seconds"] == pytest.approx(sum(parts), abs=0.1)
    by_hand = run_main_here(
        "main_finetune", *FEW, "--draw", 1, "--seed", 1, "--hold_out", 0.2, "--blr", 0.1
    )
    torch.testing.assert_close(
        weights(by_hand.folder)["model"], weights(drawn.folder / "draw-1/blr-0.1")["model"],
        rtol=0, atol=0,
    )  # fmt: skip


def test_labelled_held_out_and_test_images_are_disjoint():
    names = {}
    for hold_out in (None, 0.2):
        args = main_finetune.parse_args(["--train_fraction", "0.05", "--draw", "3"])
        args.hold_out = hold_out
        train, tested = draws.load(args)
        names[hold_out] = [{one.name(i) for i in range(len(one))} for one in (train, tested)]
    (labelled, test), (trained, held) = names[None], names[0.2]
    assert trained | held == labelled and not trained & held and not held & test
    assert len(held) == 10 and len(labelled) == 70  # one of seven of each class: 20 % rounded down


def test_a_rate_whose_test_loss_is_not_finite_is_no_choice(monkeypatch, tmp_path):
    """results.json has null for it."""
    found = {1e-3: dict(test_acc1=50.0, test_loss=1.0), 1e-1: dict(test_acc1=90.0, test_loss=None)}
    monkeypatch.setattr(draws, "_result", lambda one, finetune: found[one.blr])
    words = [*map(str, FEW), "--draws", "1", "--choose_blr", "1e-3", "1e-1"]
    args = main_finetune.parse_args([*words, "--output_dir", str(tmp_path)])
    args.draw = 0
    assert draws._choose_blr(args, None, []) == 1e-3


def test_draws_go_on_one_by_one(drawn, run_main_here, monkeypatch, tmp_path):
    """Ended in the middle of the fifth of six runs, and again: the bits of an undisturbed run."""
    calls, agreed = 0, StopSignal.agreed  # asked after each step, and before each test

    def stop_at_the_36th_time(self) -> bool:
        nonlocal calls
        calls += 1
        self.received = 15 if calls == 36 else None
        return agreed(self)

    flags = (*FEW, "--draws", 2, "--choose_blr", 1e-3, 1e-1, "--resume", "auto")
    monkeypatch.setattr(StopSignal, "agreed", stop_at_the_36th_time)
    stopped = run_main_here("main_finetune", *flags, folder=tmp_path / "out")
    assert stopped.status == 75 and "saved" in stopped.err
    assert not (tmp_path / "out" / "results.json").exists()
    done = sorted(p.parent.name for p in (tmp_path / "out").rglob("results.json"))
    assert done == ["blr-0.001", "blr-0.001", "blr-0.1", "draw-0"]
    first = (tmp_path / "out/draw-0/checkpoint-last.pth").stat().st_mtime_ns
    resumed = run_main_here("main_finetune", *flags, folder=tmp_path / "out")
    assert resumed.status == 0, resumed.err
    assert (tmp_path / "out/draw-0/checkpoint-last.pth").stat().st_mtime_ns == first
    assert resumed.results()["test_acc1_of_draws"] == drawn.results()["test_acc1_of_draws"]
    ends = [weights(folder / "draw-1") for folder in (resumed.folder, drawn.folder)]
    for part in ("model", "trained"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)


def test_the_mean_of_the_weights_is_what_is_tested_and_saved(drawn, run_main_here):
    saved = drawn.folder / "draw-0" / "checkpoint-last.pth"
    outcome = run_main_here("main_finetune", "--eval", "--resume", saved)
    assert outcome.results()["acc1"] == pytest.approx(drawn.results()["test_acc1_of_draws"][0])
    state = weights(saved.parent)
    assert not torch.equal(state["model"]["head.weight"], state["trained"]["head.weight"])


def test_a_run_goes_on_with_a_mean_or_without_as_it_began(drawn, run_main_here, tmp_path):
    """Else it is refused, and the folder stays as it is."""
    plain = tuple(word for word in FEW if word not in ("--ema_decay", 0.8))
    cut = tmp_path / "cut"
    assert run_main_here("main_finetune", *plain, "--max_steps", 3, folder=cut).status == 0
    meant = shutil.copytree(drawn.folder / "draw-0", tmp_path / "meant")
    for folder, flags, words in (
        (cut, FEW, ("no running mean", "here --ema_decay 0.8")),
        (meant, plain, ("a running mean", "--ema_decay 0.8, here none")),
    ):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for resume in ("auto", folder / "checkpoint-last.pth"):
            outcome = run_main_here("main_finetune", *flags, "--resume", resume, folder=folder)
            assert outcome.status == 2 and outcome.err.count("\n") == 1, outcome.err
            assert all(word in outcome.err for word in words), outcome.err
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    went_on = run_main_here("main_finetune", *plain, "--resume", "auto", folder=cut)
    assert went_on.status == 0 and went_on.log()[-1]["epoch"] == 1, went_on.err


def test_draws_that_contradict_other_flags(refuses, tmp_path):
    main = "main_finetune"
    refuses(main, "--draws", 2, "--draw", 1, names=("--draws", "--draw"))
    refuses(main, "--choose_blr", 1e-3, "--blr", 1e-3, names=("--choose_blr", "--blr"))
    refuses(main, "--choose_blr", 1e-3, "--lr", 1e-3, names=("--choose_blr", "--lr"))
    refuses(main, "--draws", 2, "--resume", tmp_path / "x.pth", names=("--draws", "--resume auto"))
    refuses(main, "--draws", 2, "--eval", "--resume", tmp_path / "x.pth", names=("--eval",))
    refuses(main, "--train_fraction", 1e-4, "--hold_out", 0.5, "--batch_size", 2,
            names=("no class has two",))  # fmt: skip


def over_two_ranks(rank: int, folder: str) -> float:
    words = [str(word) for word in (*FEW, "--batch_size", 8, "--draws", 2, "--device", "cpu")]
    outcome = run_in_process("main_finetune", *words, folder=Path(folder))
    return 0 if outcome.status == 0 else outcome.err


@pytest.mark.slow
def test_draws_share_a_process_group(tmp_path, run_main_here):
    assert in_ranks(over_two_ranks, 2, tmp_path, str(tmp_path / "two")) == [0, 0]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    one = run_main_here("main_finetune", *FEW, "--draws", 2)
    assert two["test_acc1_of_draws"] == pytest.approx(one.results()["test_acc1_of_draws"], abs=1.1)
