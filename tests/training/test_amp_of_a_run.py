"""--amp auto is decided when a run begins; wherever it is resumed, it stays."""

import pytest
import torch

from util.training import precision as precision_module
from util.training.precision import Precision

CPU = torch.device("cpu")
SHORT = {
    "main_pretrain": ("--batch_size", 64), "main_finetune": ("--batch_size", 64),
    "main_linprobe": ("--batch_size", 64, "--min_crop", 0.5),
}  # fmt: skip


def node_takes(monkeypatch, amp: str) -> None:
    monkeypatch.setattr(precision_module, "_own_amp", lambda device, width: (amp, "CPU"))


@pytest.mark.parametrize("main", SHORT)
def test_a_resumed_run_keeps_what_auto_took(run_main_here, monkeypatch, tmp_path, main):
    def run(amp: str, max_steps: int, *more) -> object:
        node_takes(monkeypatch, amp)
        flags = (*SHORT[main], "--max_steps", max_steps, "--resume", "auto", *more)
        outcome = run_main_here(main, *flags, folder=tmp_path)
        assert outcome.status == 0, outcome.err
        return outcome

    assert run("bf16", 1).results()["flags"]["amp"] == "bf16"
    resumed = run("none", 2)
    assert resumed.results()["flags"]["amp"] == "bf16"
    assert resumed.results()["flag_sources"]["amp"] == "auto"
    assert "--amp auto stays bf16, as the run began, where it would take none now" in resumed.out
    assert "--amp bf16 (the checkpoint's run" not in resumed.out
    assert "--amp none (the checkpoint's run" not in resumed.out
    asked = run("none", 3, "--amp", "none")
    assert asked.results()["flags"]["amp"] == "none"
    assert "--amp none (the checkpoint's run: bf16)" in asked.out


@pytest.mark.parametrize("began", ["none", "bf16", "fp16"])
@pytest.mark.parametrize("now", ["none", "bf16", "fp16"])
def test_auto_takes_what_the_checkpoint_has(monkeypatch, began, now):
    node_takes(monkeypatch, began)
    first = Precision("auto", CPU)
    if began == "fp16":
        first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 8.0})
    node_takes(monkeypatch, now)
    resumed = Precision("auto", CPU)
    resumed.load_state_dict(first.state_dict())
    assert resumed.name == began and resumed.dtype == first.dtype
    assert resumed.scaler.is_enabled() == (began == "fp16")
    assert resumed.state_dict() == first.state_dict()
    asked = Precision(now, CPU)
    asked.load_state_dict(first.state_dict())
    assert asked.name == now


def test_a_scaler_of_an_older_checkpoint_is_that_of_fp16(monkeypatch):
    old = torch.amp.GradScaler("cpu", init_scale=4.0).state_dict()
    node_takes(monkeypatch, "bf16")
    resumed = Precision("auto", CPU)
    resumed.load_state_dict(old)
    assert resumed.name == "fp16" and resumed.state_dict() == {"amp": "fp16"} | old
