"""Files that are no weights, given to every flag that opens some: one line, at the start."""

import io
import pickle
import zipfile

import pytest
import torch

KINDS = (
    "random",
    "empty",
    "text",
    "zip",
    "truncated",
    "flipped",
    "folder",
    "pickle",
    "list",
    "absent",
)
SEGMENTATION = ("--data_path", "absent")  # which is looked at later
OPENERS = {  # by flag: a main, and what else its command line needs
    "main_finetune --finetune": (),
    "main_finetune --resume": (),
    "main_finetune --eval --resume": (),
    "main_linprobe --finetune": (),
    "main_linprobe --resume": (),
    "main_linprobe --eval --resume": (),
    "main_pretrain --resume": (),
    "main_segmentation --finetune": SEGMENTATION,
    "main_segmentation --resume": SEGMENTATION,
    "main_segmentation --eval --resume": SEGMENTATION,
    "main_detection --finetune": SEGMENTATION,
    "main_detection --eval --resume": SEGMENTATION,
    "main_evaluate CHECKPOINT": (),
    "main_evaluate untrained CHECKPOINT": (),
    "main_robustness CHECKPOINT": (),
}


class Foreign:
    """A class that a stranger's file would run."""


@pytest.fixture(scope="module")
def garbage(tmp_path_factory):
    """Paths by kind."""
    folder = tmp_path_factory.mktemp("garbage")
    paths = {kind: folder / f"{kind}.pth" for kind in KINDS}
    whole, archive = io.BytesIO(), io.BytesIO()
    torch.save({"model": {"a": torch.arange(1000.0)}}, whole)
    whole = whole.getvalue()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "no weights")
    generator = torch.Generator().manual_seed(0)
    contents = {
        "random": torch.randint(0, 256, (5000,), generator=generator).byte().numpy().tobytes(),
        "empty": b"", "text": b"<!DOCTYPE html>\n<html>404</html>\n", "zip": archive.getvalue(),
        "truncated": whole[: len(whole) // 2],
        "flipped": bytes(byte ^ 0x10 * (i == 2000) for i, byte in enumerate(whole)),
    }  # fmt: skip
    for kind, content in contents.items():
        paths[kind].write_bytes(content)
    paths["folder"].mkdir()
    paths["pickle"].write_bytes(pickle.dumps({"model": Foreign()}))
    torch.save([torch.zeros(2)], paths["list"])
    return paths


@pytest.mark.parametrize("opener", OPENERS)
def test_garbage_is_named_with_its_flag_at_the_start(run_main_here, garbage, opener):
    main, *words = opener.split()
    named = words.pop()
    for kind, path in garbage.items():
        given = [*words, *([named] if named.startswith("--") else []), path]
        if kind == "flipped" and "--eval" not in words and named == "--resume":
            continue  # every byte is looked at once the model is built
        outcome = run_main_here(main, *given, *OPENERS[opener])
        assert outcome.status == 2, (kind, outcome.out, outcome.err)
        assert outcome.err.count("\n") == 1 and f"{named} {path} " in outcome.err, outcome.err
        assert "Traceback" not in outcome.out and len(outcome.out.splitlines()) < 3, outcome.out
        said = outcome.err.partition(str(path))[2]
        assert any(fix in said for fix in ("check the path", "name", "wanted")), said


def test_a_state_dict_is_no_run_to_go_on_from(refuses, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.zeros(3)}}, path)
    refuses("main_pretrain", "--resume", path, names=(str(path), "lacks progress, config"))
    refuses("main_finetune", "--resume", path, names=("weights alone go to --finetune",))
