"""Where each flag's value comes from, and what a checkpoint says to it."""

import json

import pytest
import torch

import main_detection
import main_evaluate
import main_finetune
import main_linprobe
import main_pretrain
import main_robustness
import main_segmentation
from encoders.load import build_encoder, load_pretrained, open_checkpoint
from encoders.vit import Pretrained
from util.errors import UsageError
from util.flags.defaults import by_dataset, by_model, in_words
from util.flags.settings import take_from_checkpoint


def sources(main, *argv):
    return main.parse_args(list(argv)).settings.sources


def test_each_value_knows_where_it_comes_from(tmp_path):
    file = tmp_path / "run.args"
    inner = tmp_path / "inner.args"
    inner.write_text("--no-flip\n")
    file.write_text(f"--epochs 7 --blr=1e-4  # --seed 3\n@{inner}\n--mask_ratio 0.6\n")
    found = sources(main_pretrain, f"@{file}", "--mask_ratio", "0.5", "--seed=1")
    assert found["epochs"] == found["blr"] == f"@{file}"
    assert found["flip"] == f"@{inner}"
    assert found["mask_ratio"] == found["seed"] == "command line"
    assert found["warmup_epochs"] == found["min_crop"] == found["mean"] == "data set"
    assert "num_masks" not in found and "temperature" not in found  # the parser's
    found = sources(main_pretrain, "--mask_ratio", "0.5", f"@{file}")
    assert found["mask_ratio"] == f"@{file}"  # the last one counts


def test_flags_are_named_that_the_main_has():
    named = main_finetune.parse_args([]).settings.named
    assert named("dataset", "lambda_min", "data_path", "classes", "seed") == (
        "--dataset, --data_path and --seed"
    )
    assert named("iterations", "draw") == "--draw" and named("iterations") == ""


def test_a_models_default_beats_the_data_sets():
    args = main_pretrain.parse_args(["--model", "simmim_swin_mini_patch2"])
    assert args.input_size == [32] and args.settings.sources["input_size"] == "model"
    assert args.norm_pix_loss is False and args.epochs == 24
    assert args.settings.sources["epochs"] == "data set"
    args = main_pretrain.parse_args(["--model", "simmim_swin_mini_patch2", "--input_size", "64"])
    assert args.input_size == [64]


@pytest.mark.parametrize("main", [main_pretrain, main_finetune, main_linprobe])
def test_the_tables_name_flags_that_the_main_has_and_the_help_tells_them(main):
    job = main.__name__.removeprefix("main_")
    parser = main.get_args_parser()
    tables = {"data set": by_dataset(job), "model": by_model(job)}
    parser.tell_defaults(tables)
    text = " ".join(parser.format_help().split())
    for kind, by_name in tables.items():
        for table in by_name.values():
            for name, value in table.items():
                assert value == parser.parse_args(as_words(name, value)).__dict__[name]
                assert f"(by {kind}: {in_words(by_name, name)})" in text


def as_words(name, value):
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def test_what_a_run_writes_says_where_its_values_are_from(pretrained):
    """The log, results.json, TensorBoard and the checkpoint."""
    assert "flags, and where those come from" in pretrained.out
    shown = " ".join(pretrained.out.split())
    assert "min_crop 0.8 [data set]" in shown and "temperature 0.07," in shown
    assert "batch_size 128 [command line]" in shown
    results = pretrained.results()
    assert results["flags"]["mi_start_loss"] == "auto" and results["flags"]["temperature"] == 0.07
    assert results["flag_sources"]["min_crop"] == "data set"
    assert "temperature" not in results["flag_sources"]
    assert "output_dir" not in results["flags"]
    state = torch.load(pretrained.folder / "checkpoint-last.pth", weights_only=True)
    assert state["flag_sources"]["batch_size"] == "command line"
    events = next(pretrained.folder.glob("events.*")).read_bytes()
    assert b"min_crop 0.8 [data set]" in events


def test_resume_names_what_changed(run_main_here, tmp_path):
    flags = ("--max_steps", 2, "--batch_size", 64, "--epochs", 4)
    first = run_main_here("main_pretrain", *flags, folder=tmp_path)
    assert first.status == 0, first.err
    again = ("--max_steps", 3, "--batch_size", 64, "--resume", "auto", "--temperature", 0.2,
             "--epochs", 5)  # fmt: skip
    changed = run_main_here("main_pretrain", *again, "--log_every", 7, folder=tmp_path)
    line = next(text for text in changed.out.splitlines() if "goes on with other flags" in text)
    assert "--temperature 0.2 (the checkpoint's run: 0.07)" in line
    assert "--epochs 5 (the checkpoint's run: 4)" in line
    assert "log_every" not in line and "batch_size" not in line
    same = run_main_here("main_pretrain", *again, folder=tmp_path)
    assert "resumed from" in same.out and "goes on with other flags" not in same.out


# ---------------------------------------------------------------- downstream and the checkpoint

CONFIG = dict(model="vit_small_patch16", in_chans=1, input_size=[64, 96], mean=[0.48], std=[0.23])


def test_open_flags_take_the_checkpoints_values(caplog):
    args = main_linprobe.parse_args(["--dataset", "image_folder", "--data_path", "."])
    take_from_checkpoint(args, CONFIG)
    assert {name: getattr(args, name) for name in CONFIG} == CONFIG
    assert args.settings.sources["mean"] == "checkpoint"
    assert not caplog.records


def test_a_contradiction_is_obeyed_and_named_in_one_line(caplog):
    flags = ["--dataset", "image_folder", "--in_chans", "3", "--input_size", "64", "--std", "0.23"]
    args = main_linprobe.parse_args([*flags, "--data_path", "."])
    take_from_checkpoint(args, CONFIG)
    assert args.in_chans == 3 and args.input_size == [64]
    assert args.mean == [0.48] * 3 and args.std == [0.23] * 3
    assert len(caplog.records) == 1
    assert "--in_chans 3, not 1" in caplog.text and "--input_size 64, not 64 96" in caplog.text
    assert "--std" not in caplog.text  # one number says the same of each channel
    with pytest.raises(UsageError, match="--std has 2 numbers for --in_chans 1"):
        args = main_linprobe.parse_args([*flags[:2], "--in_chans", "2", "--std", "0.1", "0.2"])
        args.in_chans = 1
        take_from_checkpoint(args, {})


DOWNSTREAM = {
    main_finetune: "--finetune x", main_linprobe: "--finetune x", main_evaluate: "pixels x",
    main_robustness: "x", main_segmentation: "--finetune x", main_detection: "--finetune x",
}  # fmt: skip


@pytest.mark.parametrize("main", DOWNSTREAM, ids=lambda main: main.__name__)
def test_the_checkpoints_channels_come_before_numbers_for_each(main):
    """One number is every channel's, of however many; several wait for the checkpoint."""
    words = [*DOWNSTREAM[main].split(), "--data_path", "."]
    args = main.parse_args([*words, "--mean", "0.7", "--std", "0.2"])
    take_from_checkpoint(args, dict(in_chans=1, mean=[0.48], std=[0.2]))
    assert (args.in_chans, args.mean, args.std) == (1, [0.7], [0.2])
    args = main.parse_args([*words, "--mean", "0.7"])
    take_from_checkpoint(args, dict(in_chans=4, mean=[0.1] * 4, std=[0.3] * 4))
    assert (args.in_chans, args.mean, args.std) == (4, [0.7] * 4, [0.3] * 4)
    given = ["--mean", "0.1", "0.2", "0.3", "0.4"]  # where the data set's default is 3
    args = main.parse_args([*words, *given])
    take_from_checkpoint(args, dict(in_chans=4))
    assert args.mean == [0.1, 0.2, 0.3, 0.4]
    with pytest.raises(UsageError, match="--mean has 4 numbers for --in_chans 1"):
        take_from_checkpoint(main.parse_args([*words, *given]), dict(in_chans=1))


@pytest.mark.parametrize("main", [*DOWNSTREAM, main_pretrain], ids=lambda main: main.__name__)
def test_numbers_that_no_checkpoint_can_fit_are_refused_at_once(main, capsys):
    words = DOWNSTREAM.get(main, "").split()
    for more in (["--in_chans", "2", "--mean", "0.1", "0.2", "0.3"], ["--value_range", "3", "3"]):
        with pytest.raises(SystemExit) as end:
            main.parse_args([*words, "--data_path", ".", *more])
        assert (
            end.value.code == 2 and more[-4 if "--mean" in more else 0] in capsys.readouterr().err
        )
    if main in (main_pretrain, main_finetune):  # without a checkpoint
        with pytest.raises(SystemExit):
            main.parse_args(["--data_path", ".", "--mean", "0.1", "0.2"])


def test_a_value_range_is_the_checkpoints_where_none_is_given():
    words = ["--data_path", ".", "--finetune", "x"]
    args = main_finetune.parse_args(words)
    take_from_checkpoint(args, CONFIG | dict(value_range=[0, 4095]))
    assert args.value_range == [0, 4095]
    args = main_finetune.parse_args([*words, "--value_range", "-1", "1"])
    take_from_checkpoint(args, CONFIG | dict(value_range=[0, 4095]))
    assert args.value_range == [-1, 1]


def test_the_encoder_sees_what_it_was_trained_on(run_main_here, image_tree, tmp_path):
    """The README's X-rays: with no flag but the data's folder a probe sees `encode`'s features."""
    folder = tmp_path / "xrays"
    trained = run_main_here(
        "main_pretrain", "--dataset", "flat", "--data_path", image_tree / "train", "--in_chans", 1,
        "--input_size", 16, 32, "--mean", 0.48, "--std", 0.23, "--model", "mimae_vit_tiny_patch4",
        "--max_steps", 2, "--batch_size", 6, "--num_workers", 0, folder=folder,
    )  # fmt: skip
    assert trained.status == 0, trained.err
    checkpoint = folder / "checkpoint-last.pth"
    args = main_linprobe.parse_args(["--data_path", str(image_tree), "--finetune", str(checkpoint)])
    encoder, _ = main_linprobe.build_frozen(args)
    assert (args.model, args.in_chans, args.input_size) == ("vit_tiny_patch4", 1, [16, 32])
    assert (args.mean, args.std) == ([0.48], [0.23])
    state = torch.load(checkpoint, weights_only=True)
    build = main_pretrain.parse_args(
        ["--model", "mimae_vit_tiny_patch4", "--in_chans", "1", "--input_size", "16", "32"]
    )
    model = main_pretrain.build_model(build)
    model.load_state_dict(state["model"])
    imgs = torch.randn(3, 1, 16, 32)
    torch.testing.assert_close(encoder.eval()(imgs), model.eval().encode(imgs)[:, 0])


def test_other_peoples_encoders_have_seen_imagenet(tmp_path):
    """On data with statistics of its own: a bare state dict of a ViT, square and of 3 channels."""
    vit = build_encoder("vit_small_patch16", 0, 64)
    torch.save({"model": vit.state_dict()}, tmp_path / "mae.pth")
    args = main_linprobe.parse_args(["--dataset", "cifar10"])
    open_checkpoint(str(tmp_path / "mae.pth"), args)
    assert args.mean == [0.485, 0.456, 0.406] and args.std == [0.229, 0.224, 0.225]
    assert args.input_size == [64, 64]


def test_a_fine_tuned_checkpoint_describes_its_images_too(run_main_here, checkpoint):
    outcome = run_main_here(
        "main_finetune", "--finetune", checkpoint, "--max_steps", 1, "--batch_size", 64,
        "--mean", 0.4, "--aa", "none",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert (
        "otherwise than the checkpoint was trained, as asked: --mean 0.4, not 0.305" in outcome.out
    )
    state = torch.load(outcome.folder / "checkpoint-last.pth", weights_only=True)
    assert state["config"]["mean"] == [0.4] and state["config"]["std"] == [0.376]
    again = run_main_here(
        "main_finetune", "--eval", "--resume", outcome.folder / "checkpoint-last.pth"
    )
    assert again.status == 0, again.err
    assert json.dumps(again.results()["flags"]["mean"]) == "[0.4]"


def test_a_head_that_does_not_fit_starts_like_a_new_one(tmp_path):
    old = build_encoder("vit_tiny_patch2", 7, 8, 1)
    torch.save({"model": old.state_dict()}, tmp_path / "seven.pth")
    pretrained = Pretrained(str(tmp_path / "seven.pth"))
    model = build_encoder("vit_tiny_patch2", 3, 8, 1)
    load_pretrained(pretrained, model)
    assert 1e-5 < float(model.head.weight.std()) < 3e-5
