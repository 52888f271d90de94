"""Command lines: argument files, defaults that a data set brings, and one-line errors."""

import contextlib
import importlib

import pytest

import main_detection
import main_evaluate
import main_finetune
import main_linprobe
import main_pretrain
import main_robustness
import main_segmentation
from util.checks import check_one_of, image_size
from util.errors import UsageError
from util.flags.parser import ArgumentParser, expand_home, number

MAINS = [main_pretrain, main_finetune, main_linprobe]


@pytest.fixture
def fails(capsys):
    """Asserts that parsing ends with status 2 and one line that has the words."""

    def check(*argv, names=(), main=main_pretrain):
        with pytest.raises(SystemExit) as end:
            main.parse_args([str(word) for word in argv])
        line = capsys.readouterr().err
        assert end.value.code == 2 and line.count("\n") == 1
        for name in names:
            assert name in line

    return check


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])  # with a byte-order mark
def test_an_argument_file_with_comments_and_quotes(tmp_path, encoding):
    file = tmp_path / "run.args"
    file.write_text(
        "# the recipe\n\n--epochs 7   # a comment\n--mask_ratio=0.6\n"
        "--data_path '/with a space'\n--keep_epochs 2 4\n",
        encoding=encoding,
    )
    args = main_pretrain.parse_args([f"@{file}", "--dataset", "digits", "--epochs", "9"])
    assert (args.epochs, args.mask_ratio, args.data_path) == (9, 0.6, "/with a space")
    assert args.keep_epochs == [2, 4]


def test_argument_files_build_on_one_another_as_seen_from_their_own_folder(tmp_path):
    (tmp_path / "ablations").mkdir()
    (tmp_path / "base.args").write_text("--epochs 7\n--mask_ratio 0.6\n")
    (tmp_path / "ablations" / "one.args").write_text("@../base.args\n--epochs 8\n")
    words = [f"@{tmp_path}/ablations/one.args", "--dataset", "digits"]
    args = main_pretrain.parse_args(words)
    assert (args.epochs, args.mask_ratio) == (8, 0.6)
    sources = args.settings.sources
    assert sources["epochs"] == f"@{tmp_path}/ablations/one.args"
    assert sources["mask_ratio"] == f"@{tmp_path}/base.args"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--data_path /data/run#3 # the third", ["--data_path", "/data/run#3"]),
        ("--data_path '#1 # 2'#3", ["--data_path", "#1 # 2#3"]),
        (r"--data_path a\ #b c#", ["--data_path", "a #b", "c#"]),
        ("  # it's a comment", []),
    ],
)
def test_a_comment_begins_at_a_word(line, words):
    assert main_pretrain.get_args_parser().convert_arg_line_to_args(line) == words


def test_argument_files_that_cannot_be_read(tmp_path, fails):
    fails("@" + str(tmp_path / "absent.args"), names=("absent.args",))
    file = tmp_path / "quote.args"
    file.write_text("--output_dir don't\n")
    fails(f"@{file}", names=("don't",))


def test_without_arguments_the_data_is_digits_and_with_a_path_a_folder():
    args = main_pretrain.parse_args([])
    assert (args.dataset, args.model) == ("digits", "mimae_vit_tiny_patch2")
    assert (args.input_size, args.in_chans, args.epochs) == ([8], 1, 24)
    args = main_pretrain.parse_args(["--data_path", "/somewhere"])
    assert (args.dataset, args.model) == ("image_folder", "mimae_vit_base_patch16")
    assert (args.input_size, args.in_chans, args.norm_pix_loss) == ([224], 3, True)


def test_the_papers_numbers_are_the_defaults():
    args = main_pretrain.parse_args(["--dataset", "image_folder"])
    found = (args.num_masks, args.mask_ratio, args.lambda_max, args.lambda_min, args.min_crop)
    assert found == (4, 0.75, 1.0, 10.0, 0.2)
    assert (args.blr, args.weight_decay, args.warmup_epochs, args.epochs) == (1.5e-4, 0.05, 10, 200)
    args = main_finetune.parse_args(["--dataset", "image_folder"])
    found = (args.blr, args.layer_decay, args.drop_path, args.mixup, args.cutmix, args.reprob)
    assert found == (5e-4, 0.65, 0.1, 0.8, 1.0, 0.25)
    args = main_linprobe.parse_args(["--dataset", "image_folder"])
    found = (args.blr, args.weight_decay, args.optimizer, args.epochs, args.global_pool)
    assert found == (0.1, 0.0, "lars", 90, False)


def test_a_flag_beats_the_data_sets_default():
    args = main_pretrain.parse_args(["--dataset", "digits", "--epochs", "3", "--input_size", "16"])
    assert (args.epochs, args.input_size, args.warmup_epochs) == (3, [16], 0.75)  # a quarter
    assert (args.lambda_max, args.lambda_min, args.mi_start_loss) == (1.0, 10.0, "auto")
    args = main_pretrain.parse_args(["--dataset", "digits", "--mi_start_loss", "0.6"])
    assert (args.mi_start_loss, args.min_crop) == (0.6, 0.8)


@pytest.mark.parametrize(
    ("flags", "mean"),
    [
        (["--in_chans", "3"], [0.305] * 3),
        (["--in_chans", "5", "--dataset", "image_folder"], [pytest.approx(0.449)] * 5),
        (["--in_chans", "2", "--mean", "0.5"], [0.5, 0.5]),
        (["--in_chans", "2", "--mean", "0.5", "0.1"], [0.5, 0.1]),
    ],
)
def test_means_for_other_channels(flags, mean):
    assert main_pretrain.parse_args(flags).mean == mean


@pytest.mark.parametrize(
    ("main", "unit"), [(main_pretrain, "epochs"), (main_segmentation, "iterations")]
)
def test_milestones_are_asked_for_in_the_mains_unit(capsys, main, unit):
    with pytest.raises(SystemExit) as end:
        main.parse_args(["--data_path", "x", "--lr_schedule", "multistep"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith(f"--lr_schedule multistep needs --lr_milestones: name the {unit}\n")
    assert said.count("\n") == 1


def test_bad_flags_are_one_line(fails):
    fails("--mean", 0.1, 0.2, names=("--mean", "--in_chans 1"))
    colours = ("--dataset", "image_folder", "--in_chans", 1)
    fails(*colours, "--std", 0.1, 0.2, 0.3, names=("--std", "--in_chans 1"))
    fails("--lr", 1, "--blr", 1, names=("--lr", "--blr"))
    fails("--lr", 1, "--lr=2", names=("--lr", "twice"))
    fails("--blr", 1, "--blr", 2, names=("--blr", "twice"))
    fails("--model", "mimae_vit_gigantic", names=("--model", "mimae_vit_base_patch16"))
    fails("--model", "vit_gigantic", names=("--model",), main=main_finetune)
    fails("--dataset", "imagenet22k", names=("--dataset", "image_folder"))
    fails("--epochs", 0, names=("--epochs", "at least 1"), main=main_finetune)
    fails("--epochs", -1, names=("--epochs", "at least 0"))
    fails("--epochs", "many", names=("--epochs", "many"))
    fails("--train_fraction", 1.5, names=("--train_fraction",))
    fails("--lambda_min", "nan", names=("--lambda_min",))
    fails("--no_such_flag", names=("--no_such_flag",))
    fails("--mask", 0.5, names=("--mask",))  # no abbreviations: they change with new flags


@pytest.mark.parametrize("main", MAINS)
def test_help_is_complete(main):
    text = main.get_args_parser().format_help()
    for action in main.get_args_parser()._actions:
        assert action.help, action.option_strings
        assert action.option_strings[0] in text


@pytest.mark.parametrize("flag", ["--compile", "--log_to=wandb", "--grad_compression=fp16"])
@pytest.mark.parametrize("main", [main_evaluate, main_robustness])
def test_evaluations_have_no_flag_of_training(main, flag, capsys):
    with pytest.raises(SystemExit) as found:
        main.parse_args(["untrained", flag])
    assert found.value.code == 2 and flag in capsys.readouterr().err


@pytest.mark.parametrize(
    "main, words",
    [
        (main_evaluate, "untrained --attentive_epochs 9"),
        (main_evaluate, "untrained --palette x --first_class 0"),
        (main_evaluate, "untrained --only knn --few 3"),
        (main_evaluate, "untrained --only label_free --test v2=x"),
        (main_robustness, "x --imagenet y --corruptions fog"),
        (main_robustness, "x --no-corrupt --severities 3"),
        (main_robustness, "x --data_path y --partial"),
        (main_finetune, "--subset_file x --draw 1"),
        (main_detection, "--eval --resume x --window 7"),
        (main_segmentation, "--predict . --resume x --palette y"),
        (main_segmentation, "--data_path x --test_mode whole --stride 8"),
        (main_pretrain, "--model mae_vit_tiny_patch2 --temperature 0.2"),
        (main_pretrain, "--model mae_vit_tiny_patch2 --no_train_approximation"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(main, words, tmp_path):
    """On the command line; an argument file may serve other runs, too."""
    with pytest.raises(UsageError, match=r"--\w+ (does|and --\w+ do) nothing with.*: leave"):
        main.parse_args(words.split())
    (tmp_path / "flags").write_text(words)
    main.parse_args([f"@{tmp_path / 'flags'}"])


@pytest.mark.parametrize("shares", [("0.5", "0.6"), ("0.8", "0.2"), ("0.1", "1.5")])
def test_shares_of_cutmix_leave_whole_pixels(shares):
    """Of 8 pixels 0.5 to 0.6 are 4 to 4."""
    args = main_finetune.parse_args(["--cutmix_minmax", *shares])
    with pytest.raises(UsageError, match=r"--cutmix_minmax .* whole number of 8 pixels"):
        main_finetune.build_augmentation(args, None, 10)


def test_evaluation_has_no_rules_of_training():
    words = "--data_path x --batch_size 1 --eval --resume x --grad_compression fp16".split()
    assert main_finetune.parse_args(words).batch_size == 1  # mixup pairs images
    with pytest.raises(UsageError, match="mixup pairs images"):
        main_finetune.parse_args(words[:4])
    with pytest.raises(UsageError, match="--eval and --predict are both given"):
        main_segmentation.parse_args(["--eval", "--predict", ".", "--resume", "x"])


def test_image_size():
    assert image_size(224, 16) == image_size([224], 16) == (224, 224)
    assert image_size((32, 64), 16) == (32, 64)
    for size in (225, (224, 230), 8, [16, 16, 16]):
        with pytest.raises(UsageError, match="--input_size"):
            image_size(size, 16)


def test_number_and_check_one_of():
    assert number(int, 1)("3") == 3 and number(float, 0, 1)("1") == 1.0
    for text in ("-0.1", "1.1", "nan"):
        with pytest.raises(Exception, match="between 0 and 1"):
            number(float, 0, 1)(text)
    with pytest.raises(UsageError, match="--colour green is unknown: use red, blue"):
        check_one_of("--colour", "green", ("red", "blue"))


def test_lr_replaces_the_data_sets_base():
    assert main_pretrain.parse_args([]).blr is not None
    for main in MAINS:
        args = main.parse_args(["--lr", "1e-3"])
        assert args.lr == 1e-3 and args.blr is None


def test_values_and_files_that_lead_nowhere(fails, tmp_path):
    for value in ("nan", "-1", "-5%", "x%", "80 %%", "open"):
        fails("--mi_start_loss", value, names=("--mi_start_loss",))
    fails("--betas", 0.9, 1, names=("--betas",))
    fails("--clip_grad", 0, names=("--clip_grad",))
    (tmp_path / "binary.args").write_bytes(bytes(range(128, 256)))
    fails(f"@{tmp_path}/binary.args", names=("@file",))
    (tmp_path / "ring.args").write_text(f"@{tmp_path}/ring.args")
    fails(f"@{tmp_path}/ring.args", names=("@file",))


# ------------------------------------------------------------------------------ images of a step


def shared(monkeypatch, processes, *flags):
    """(batch_size, accum_iter, where they are from) of a run on so many processes."""
    for name, value in (("RANK", 0), ("WORLD_SIZE", processes)):
        monkeypatch.setenv(name, str(value))
    args = main_pretrain.parse_args([*map(str, flags)])
    return args.batch_size, args.accum_iter, args.settings.sources.get("batch_size")


@pytest.mark.parametrize(
    ("processes", "flags", "batch_size", "accum_iter"),
    [
        (1, (), 1024, 1),
        (8, (), 128, 1),
        (8, ("--max_batch_size", 32), 32, 4),
        (8, ("--max_batch_size", 48), 43, 3),  # 1032 images, the nearest
        (12, (), 85, 1),  # 1020
        (8, ("--batch_size", 64), 64, 2),
        (8, ("--accum_iter", 4), 32, 4),
        (8, ("--batch_size", 32, "--accum_iter", 4), 32, 4),
    ],
)
def test_the_images_of_a_step_are_shared(monkeypatch, processes, flags, batch_size, accum_iter):
    found = shared(monkeypatch, processes, "--images_per_step", 1024, *flags)
    assert found[:2] == (batch_size, accum_iter)
    given = "command line" if "--batch_size" in flags else "--images_per_step"
    assert found[2] == given


def test_a_limit_without_images_to_share_is_refused(capsys):
    with pytest.raises(SystemExit):
        main_pretrain.parse_args(["--max_batch_size", "64"])
    assert "--max_batch_size is of --images_per_step" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("processes", "images", "flags"),
    [
        (8, 1024, ("--batch_size", 100)),
        (8, 1024, ("--batch_size", 64, "--accum_iter", 4)),
        (8, 1024, ("--batch_size", 64, "--max_batch_size", 32)),
        (16, 40, ()),
        (16, 4, ()),
    ],
)
def test_what_contradicts_the_images_of_a_step_is_refused(
    monkeypatch, capsys, processes, images, flags
):
    with pytest.raises(SystemExit) as end:
        shared(monkeypatch, processes, "--images_per_step", images, *flags)
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert f"--images_per_step {images}" in err and f"{processes} process" in err


@pytest.mark.parametrize("main", [main_pretrain, main_finetune, main_linprobe])
def test_a_warm_up_may_be_a_share_of_the_run(main, capsys):
    args = main.parse_args(["--epochs", "40", "--warmup_epochs", "5%"])
    assert args.warmup_epochs == pytest.approx(2) and type(args.warmup_epochs) is float
    for wrong in ("-5%", "101%", "%", "five"):
        with pytest.raises(SystemExit) as end:
            main.parse_args([f"--warmup_epochs={wrong}"])
        assert end.value.code == 2 and "--warmup_epochs" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- home

PROGRAMS = {
    "main_pretrain": [], "main_finetune": [], "main_linprobe": [], "main_evaluate": ["~/p"],
    "main_robustness": ["~/p"], "main_segmentation": [], "main_detection": [],
    "reproduce": ["table1"], "submitit_launch": [], "tools.statistics": [],
    "tools.corrupt": ["~/p", "~/q"], "tools.scenes": ["~/p"], "tools.shards": ["~/p", "~/q"],
}  # fmt: skip


def actions_of(program, monkeypatch):
    """The parser of a program, as it is when the command line is read."""
    seen = []
    parse = ArgumentParser.parse_known_args
    monkeypatch.setattr(
        ArgumentParser, "parse_known_args",
        lambda self, *args: seen.append(self) or parse(self, *args),
    )  # fmt: skip
    module = importlib.import_module(program)
    words = [word.replace("~", "/x") for word in PROGRAMS[program]]
    if program == "submitit_launch":
        module.get_args_parser().parse_known_args([])
    else:
        with contextlib.suppress(UsageError):  # what a main misses beside its flags
            module.parse_args(words)
    return seen[0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_path_may_begin_at_home_in_every_program(program, monkeypatch, tmp_path):
    """In each flag that takes text, on a command line and in an @file."""
    parser = actions_of(program, monkeypatch)
    monkeypatch.setenv("HOME", "/home/me")
    texts = [a for a in parser._actions if a.type is None and not a.choices and a.nargs != 0]
    texts = [a for a in texts if a.option_strings and a.dest != "help"]
    lines = [f"{action.option_strings[0]}=~/b\\ c/x\n" for action in texts]
    (tmp_path / "run.args").write_text("".join(lines))
    base = PROGRAMS[program]
    flags = [word for a in texts for word in (a.option_strings[0], "~/a")]
    equal = [f"{a.option_strings[0]}=~/a" for a in texts]
    for words, expected in ((flags, "/home/me/a"), (equal, "/home/me/a"),
                            ([f"@{tmp_path}/run.args"], "/home/me/b c/x")):  # fmt: skip
        args = parser.parse_args([*base, *words])
        for action in texts:
            found = getattr(args, action.dest)
            assert (found[0] if isinstance(found, list) else found) == expected, action.dest
        for action in (a for a in parser._actions if not a.option_strings and not a.choices):
            found = getattr(args, action.dest)
            assert (found if isinstance(found, str) else found[0]).startswith("/home/me/")


def test_an_argument_file_may_lie_at_home_and_name_others_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.args").write_text("@~/b.args\n--output_dir ~/out\n")
    (tmp_path / "b.args").write_text("--epochs 3\n--data_path '~/with a space'\n")
    args = main_pretrain.parse_args(["@~/a.args"])
    assert args.epochs == 3
    assert (args.output_dir, args.data_path) == (f"{tmp_path}/out", f"{tmp_path}/with a space")


@pytest.mark.parametrize(
    ("word", "expanded"),
    [("~/x", "/home/me/x"), ("~", "/home/me"), ("NAME=~/x", "NAME=/home/me/x"), ("a~/x", "a~/x"),
     ("--flag=~/x", "--flag=/home/me/x"), ("x/y=~/z", "x/y=~/z"), ("1~2", "1~2"),
     ("~no_such_user/x", "~no_such_user/x"), ("--mean", "--mean"), ("a b=~/x", "a b=~/x")],
)  # fmt: skip
def test_where_a_tilde_is_the_home_folder(word, expanded, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(word) == expanded
