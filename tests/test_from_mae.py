"""docs/from_mae.md says what MAE's flags, files and logs are here: compared with the programs."""

import re
import shlex
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

import main_finetune
import main_linprobe
import main_pretrain
import submitit_launch
from util.flags.defaults import shown

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "from_mae.md").read_text()
FOLDER = "a folder of theirs"

# The defaults of MAE's flags, as its programs' --help tells them; `dest` where it is not the name.
_ALL = dict(
    batch_size=64, accum_iter=1, weight_decay=0.05, lr=None, data_path=FOLDER,
    output_dir="./output_dir", log_dir="./output_dir", device="cuda", seed=0, resume="",
    start_epoch=0, num_workers=10, pin_mem=True, no_pin_mem=True, world_size=1, local_rank=-1,
    dist_on_itp=False, dist_url="env://",
)  # fmt: skip
_LABELLED = dict(
    finetune="", cls_token=None, nb_classes=1000, eval=False, dist_eval=False,
    model="vit_large_patch16",
)  # fmt: skip
MAE = {
    "pre-train": _ALL
    | dict(
        epochs=400, model="mae_vit_large_patch16", input_size=224, mask_ratio=0.75,
        norm_pix_loss=False, blr=1e-3, min_lr=0.0, warmup_epochs=40,
    ),
    "fine-tune": _ALL
    | _LABELLED
    | dict(
        epochs=50, input_size=224, drop_path=0.1, clip_grad=None, blr=1e-3, layer_decay=0.75,
        min_lr=1e-6, warmup_epochs=5, color_jitter=None, aa="rand-m9-mstd0.5-inc1", smoothing=0.1,
        reprob=0.25, remode="pixel", recount=1, resplit=False, mixup=0, cutmix=0,
        cutmix_minmax=None, mixup_prob=1.0, mixup_switch_prob=0.5, mixup_mode="batch",
        global_pool=True,
    ),
    "probe": _ALL
    | _LABELLED
    | dict(
        batch_size=512, epochs=90, weight_decay=0, blr=0.1, min_lr=0.0, warmup_epochs=10,
        global_pool=False,
    ),
    "launcher": dict(
        ngpus=8, nodes=2, timeout=4320, job_dir="", partition="learnfair", use_volta32=False,
        comment="",
    ),
}  # fmt: skip
OURS = {
    "pre-train": main_pretrain, "fine-tune": main_finetune, "probe": main_linprobe,
    "launcher": submitit_launch,
}  # fmt: skip
WITHOUT_OWN_DEFAULT = ("cls_token", "no_pin_mem")  # they turn another flag off


def parser_of(program: str) -> ArgumentParser:
    return OURS[program].get_args_parser()


def flags_of(program: str) -> dict[str, str]:
    """A program's flags, each with the name of its value."""
    actions = parser_of(program)._actions
    found = {flag[2:]: action.dest for action in actions for flag in action.option_strings
             if flag.startswith("--")}  # fmt: skip
    return {name: dest for name, dest in found.items() if name != "help"}


def values_of(program: str):
    if program == "launcher":
        return parser_of(program).parse_args([])
    return OURS[program].parse_args(["--data_path", "DATA"])


def table() -> dict[str, dict[str, str]]:
    """The table of flags: by flag, the cell of each program."""
    lines = [line for line in TEXT.splitlines() if line.startswith("| `--")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {row[0].strip("`-"): dict(zip(MAE, row[1:5], strict=True)) for row in rows}
    assert len(found) == len(rows), "a flag stands there twice"
    return found


@pytest.mark.parametrize("program", MAE)
def test_every_flag_of_maes_is_in_the_table_and_as_it_says(program):
    known, args, cells = flags_of(program), values_of(program), table()
    assert {name for name, row in cells.items() if row[program] != "–"} == MAE[program].keys()
    for name, theirs in MAE[program].items():
        cell = cells[name][program]
        if cell == "gone" or cell.startswith("`--"):
            assert name not in known, name
            assert cell == "gone" or cell.strip("`-") in known, name
            continue
        assert name in known, name
        ours = getattr(args, known[name])
        if name == "data_path":
            ours = parser_of(program).get_default("data_path")
        if cell == "same":
            assert name in WITHOUT_OWN_DEFAULT or shown(theirs) == shown(ours), name
        else:
            assert cell == f"{shown(theirs)} → {shown(ours)}", name
            assert shown(theirs) != shown(ours), name


@pytest.mark.parametrize("program", MAE)
def test_every_new_flag_is_named_and_no_other(program):
    section = TEXT.split("## New flags")[1].split("\n## ")[0]
    line = next(part for part in section.split("\n\n") if part.startswith(f"**{program}**"))
    new = {name for name in flags_of(program) if name not in MAE[program]}
    new -= {"no-pin_mem", "no-norm_pix_loss"}  # in the table
    assert set(re.findall(r"`--([\w-]+)`", line)) == {n for n in new if not n.startswith("no-")}


def ours_of(block: str) -> list[list[str]]:
    """The commands of a block below "# here", in words."""
    text = block.split("# here\n")[1].replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


COMMANDS = [words for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S)
            for words in ours_of(block)]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_every_command_of_ours_is_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, rest = words[place], words[place + 1 :]
    if not script.startswith("submitit"):
        if words[0] == "torchrun":  # the processes that share a step
            for name, value in (("RANK", "0"), ("WORLD_SIZE", words[2])):
                monkeypatch.setenv(name, value)
        mains = {f"{main.__name__}.py": main for main in OURS.values()}
        mains[script].parse_args(rest)
        return
    main = main_pretrain
    if script == "submitit_launch.py":
        main, rest = submitit_launch.MAINS[rest[0]], rest[1:]
    launcher, _ = submitit_launch.split_args(main, rest)
    assert launcher.nodes >= 4


def test_there_are_commands_for_every_program():
    scripts = {word for words in COMMANDS for word in words if word.endswith(".py")}
    assert scripts == {"main_pretrain.py", "main_finetune.py", "main_linprobe.py",
                       "submitit_pretrain.py", "submitit_launch.py"}  # fmt: skip


def keys_of_table(first: str, column: int) -> list[str]:
    """The names in code in a column of the table whose head begins so."""
    lines = TEXT.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found += re.findall(r"`([\w-]+)`", line.strip("|").split("|")[column])
    return found


def test_files_and_logs_have_the_names_that_are_told(run_main_here):
    import torch

    quick = ("--max_steps", 1, "--batch_size", 32, "--epochs", 1, "--train_fraction", 0.1)
    pre = run_main_here("main_pretrain", *quick)
    saved = torch.load(pre.folder / "checkpoint-last.pth", weights_only=True)
    assert set(keys_of_table("in the file", 2)) - {"--keep_epochs"} <= saved.keys()
    assert saved.keys() <= set(keys_of_table("in the file", 2)), saved.keys()
    probe = run_main_here("main_linprobe", *quick, "--finetune", pre.folder / "checkpoint-last.pth")
    told = keys_of_table("MAE", 1)
    assert {"epoch", "steps", "train_loss", "train_rec"} <= pre.log()[0].keys()
    assert set(told) - {"train_rec"} <= probe.log()[0].keys()
    theirs = set(keys_of_table("MAE", 0)) - set(told)
    assert theirs == {"train_lr", "n_parameters"} and not theirs & probe.log()[0].keys()
    weights = torch.load(probe.folder / "checkpoint-last.pth", weights_only=True)["model"]
    assert "encoder.vit.blocks.0.attn.qkv.weight" in weights and "head.1.weight" in weights
    section = TEXT.split("## Names of parameters")[1].split("\n## ")[0].split("; the probe")[0]
    names = re.findall(r"`([\w.]+)`", section.replace(".N", ".0"))
    assert len(names) > 15
    for name in names:
        parts = (f"{name}.", f".0{name}.", name) if name.startswith(".") else (f"{name}.", name)
        is_there = any(part in key for part in parts for key in saved["model"])
        assert is_there or name in ("fc_norm", "head"), name


def test_a_fine_tuned_file_of_theirs_is_evaluated_and_not_resumed(run_main_here, refuses, tmp_path):
    """Its names are timm's, and ours; its flags are a Namespace."""
    import torch

    from encoders.load import build_encoder

    weights = build_encoder("vit_tiny_patch2", 10, 8, 1).state_dict()
    path, flags = tmp_path / "checkpoint-99.pth", Namespace(model="vit_tiny", nb_classes=10)
    torch.save({"model": weights, "optimizer": {}, "epoch": 99, "args": flags}, path)
    found = run_main_here("main_finetune", "--eval", "--resume", path, "--dataset", "digits")
    assert found.status == 0 and "acc1" in found.out, found.err
    refuses("main_finetune", "--resume", path, "--dataset", "digits", names=("progress, config",))
