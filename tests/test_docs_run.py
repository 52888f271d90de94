"""Every command in README.md and docs/ runs, at tiny size, with synthetic data and one process."""

import importlib
import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from documented import COMMANDS, ROOT, program
from mains import Outcome, captured, run_program
from tiny_world import inside, write_checkpoints, write_data

import submitit_launch

pytestmark = pytest.mark.slow

NOT_RUN = {  # how a command begins: why it is not run
    "make ": "makes an environment, or is the tests themselves",
    "python -m venv": "makes an environment",
    "uv ": "makes an environment",
    "pip ": "installs packages",
    "apptainer ": "needs a container's runtime, and the network",
    "sbatch ": "needs a cluster; tests/cluster/test_slurm.py has one",
    "status=$?": "part of that job's script",
    "[ $status": "part of that job's script",
    "exit ": "part of that job's script",
    "python benchmarks/": "tests/test_benchmarks.py and tests/benchmarks/ run them at tiny size",
    "PYTHONPATH=packages python benchmarks/": "as above",
    "python main_pretrain.py --log_to wandb": "needs a package and an account; tests of --log_to "
    "have a stand-in",
    "python main_pretrain.py @recipes/openclipart": "needs Debian's package",
    "python main_evaluate.py runs/clipart": "needs Debian's package",
    "python main_pretrain.py @recipes/table3/f_mimae.args @recipes/small": "needs Fashion-MNIST",
    "torchrun --nproc_per_node 8 main_robustness.py": "as the next one",
    "python main_robustness.py runs/ft-mae": "needs ImageNet's thousand classes; "
    "test_the_published_sets in tests/test_main_robustness.py has its layouts",
}
PLACES = {
    "IMAGENET": "/data/imagenet", "COCO": "/data/coco",
    "ADEChallengeData2016": "/data/ADEChallengeData2016",
}  # fmt: skip
TRAINING = "--max_steps 1 --batch_size 2 --images_per_step 2"
SHORT = {  # program: what is appended to its flags, before those of a model
    "main_pretrain": TRAINING, "main_finetune": TRAINING, "main_linprobe": TRAINING,
    "main_segmentation": f"{TRAINING} --decoder_channels 8", "main_detection": TRAINING,
    "main_evaluate": "--few 1 --draws 1",
    "main_robustness": "--max_images 8 --corruptions fog --severities 1",
    "reproduce": "--dry_run --out tables",
}  # fmt: skip
SHORT_WITH = {
    "--attentive": "--attentive_epochs 1 --attentive_batch 8", "--dense": "--dense_patches 64",
}  # fmt: skip
DENSE = ("main_segmentation", "main_detection")


def documented() -> list[tuple[str, str]]:
    """(page, command), each command once."""
    return sorted({line: (page, line) for page, line in [*COMMANDS, *of_recipes()]}.values())


def of_recipes() -> list[tuple[str, str]]:
    """The commands with which recipes open, for the places that the documentation names."""
    found = []
    for path in sorted((ROOT / "recipes").rglob("*.args")):
        head = "\n".join(re.findall(r"^#   (.*)$", path.read_text(), re.M)).replace("\\\n", " ")
        head = re.sub(r"\b(IMAGENET|COCO|ADEChallengeData2016)\b", lambda m: PLACES[m[0]], head)
        head = head.replace(
            "CHECKPOINT", f"runs/{'swin' if 'swin' in head else 'mimae'}/checkpoint-last.pth"
        )
        found += [(str(path.relative_to(ROOT)), line) for line in head.splitlines()]
    return found


def reason(line: str) -> str:
    return next((why for start, why in NOT_RUN.items() if line.startswith(start)), "")


def tiny(name: str, words: list[str]) -> list[str]:
    """A command's flags, for 24 x 16 pixels, a small model, the CPU and a step.

    Absolute folders lie below the working folder; sizes are a sixteenth; what is appended wins.
    """
    words = [re.sub(r"(^|=)/(data|shared|scratch)\b", r"\1\2", word) for word in words]
    if "--input_size" in words:
        for place in range(words.index("--input_size") + 1, len(words)):
            if not words[place].isdigit():
                break
            words[place] = str(int(words[place]) // 16)
    words += SHORT.get(name, "").split()
    for flag, more in SHORT_WITH.items():
        words += more.split() if name == "main_evaluate" and flag in words else []
    if name.startswith("main_"):
        words += ["--device", "cpu", "--num_workers", "0"]
        if not is_digits(words):
            words += model_flags(name, words)
        elif name == "main_evaluate":
            words += ["--train_fraction", "0.02"]
    elif name in ("tools.features", "tools.visualize"):
        words += ["--device", "cpu"]
    return words


def is_digits(words: list[str]) -> bool:
    return not any(word in ("--data_path", "--train_json", "--predict") for word in words)


def model_flags(name: str, words: list[str]) -> list[str]:
    """The tiny model in place of a recipe's; evaluations take a checkpoint's."""
    text = " ".join(words)
    swin = "swin" in text
    method = re.search(r"(\w*mae|\w*simmim)_(vit|swin)", text)
    prefix = f"{method[1] if method else 'mimae'}_" if name == "main_pretrain" else ""
    model = prefix + ("swin_mini_patch2" if swin else "vit_tiny_patch4")
    flags = [] if name == "main_evaluate" else ["--model", model]
    size = "32" if name in DENSE or swin else "16"
    return flags + ([] if "--input_size" in words or "xrays" in text else ["--input_size", size])


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with all that the commands name."""
    root = tmp_path_factory.mktemp("world")
    (root / "recipes").symlink_to(ROOT / "recipes")
    with inside(root):
        write_data(root)
        write_checkpoints(root, tiny)
    return root


def run(name: str, words: list[str]) -> Outcome:
    """The working folder holds links; what a command writes is its own."""
    if name.startswith("submitit"):
        main = "main_pretrain" if name == "submitit_pretrain" else words.pop(0)
        module = importlib.import_module(main.removesuffix(".py"))
        words = [*tiny(name, words), "--dry_run"]
        return captured(partial(submitit_launch.launch, module, words))
    out = ["--output_dir", "out"] if name.startswith("main_") else []
    return run_program(name, *tiny(name, words), *out)


@pytest.mark.parametrize(("page", "line"), documented(), ids=lambda value: value[:70])
def test_it_runs(page, line, world, tmp_path):
    if reason(line):
        pytest.skip(reason(line))
    found = program(shlex.split(line.split(" > ")[0], comments=True))
    assert found, f"{page} has a command of no known program: {line}"
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
        if path.name in found[1][-1] and found[0] == "tools.shards":
            (tmp_path / path.name).unlink()  # where it writes to
    with inside(tmp_path):
        done = run(*found)
    assert done.status == 0, f"{page}: {line}\n{done.err}"


def test_each_exception_is_still_one():
    lines = [line for _, line in documented()]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
