"""All that a GPU would run goes through on fake tensors, and what waits for the device is known."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import rehearsal
from benchmarks.gpu.cases import CASES, Case
from benchmarks.gpu.fake_gpu import DEVICE, FakeGPU, Wait
from benchmarks.gpu.forwards import Rehearsed, check, images, shallow
from benchmarks.rehearsal import rehearse

DOCS = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


@pytest.fixture(scope="module")
def found() -> dict[str, list[Wait] | Exception]:
    """What each case waits for in fp16, which scales the loss, too; or its error."""

    def attempt(case: Case) -> list[Wait] | Exception:
        try:
            return rehearse(case, ("fp16",))
        except Exception as error:
            return error

    return {case.name: attempt(case) for case in CASES}


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_it_would_run_on_a_gpu(name, found):
    if isinstance(found[name], Exception):
        raise found[name]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_would_run_in_the_other_precisions(case):
    rehearse(case, ("bf16", "none"))


def documented(heading: str) -> set[Wait]:
    part = DOCS.read_text().split(f"{heading}**")[1].split("\nIn ")[0].split("\n## ")[0]
    rows = re.findall(r"^\| ([a-z ]+) \| `([^`]+)` \|", part, re.MULTILINE)
    return {Wait(*row) for row in rows}


def test_what_waits_is_what_the_documentation_lists(found):
    steps = {case.name for case in CASES if case.is_step}
    waits = {kind: set() for kind in (True, False)}
    for name, own in found.items():
        waits[name in steps] |= set(own)
    assert waits[True] == documented("training steps")
    assert waits[False] == documented("evaluation, and at log steps")


def test_of_training_steps_only_detection_and_unfused_optimisers_wait(found):
    waiting = {case.name for case in CASES if case.is_step and found[case.name]}
    assert all(name.startswith(("detection", "linear probe")) for name in waiting)


@pytest.fixture
def gpu():
    with FakeGPU() as gpu:
        yield gpu


def test_a_tensor_that_was_left_on_the_cpu_is_an_error(gpu):
    with pytest.raises(RuntimeError, match="two"):
        images(4).float() * torch.rand(3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_loss_that_is_not_fp32_is_an_error(gpu, dtype):
    with pytest.raises(TypeError, match="loss is"):
        check({"loss": torch.zeros((), dtype=dtype, device=DEVICE)})
    with pytest.raises(TypeError, match="cpu"):
        check({"loss": torch.zeros(())})


def test_autocast_computes_as_on_a_gpu(gpu):
    linear = gpu.take(torch.nn.Linear(4, 4))
    for amp, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("none", torch.float32)):
        with Rehearsed(amp, linear).autocast():
            assert linear(torch.zeros(2, 4, device=DEVICE)).dtype == dtype


UNPINNED = "copies from memory that is not pinned"
WAITING = [
    ("reads a number", lambda x: float(x.sum())),
    ("looks for what is true", lambda x: torch.where(x > 0)),
    ("picks by a mask", lambda x: x[x > 0]),
    ("copies to the CPU", lambda x: x.cpu()),
    (UNPINNED, lambda x: torch.tensor([1.0], device=x.device)),
    (UNPINNED, lambda x: torch.ones(8).to(x.device, non_blocking=True)),
    (UNPINNED, lambda x: x.__setitem__(torch.arange(3, device=x.device), 1.0)),
    (UNPINNED, lambda x: x[torch.arange(3)]),
    ("counts values", lambda x: x.long().bincount(minlength=3)),
]


@pytest.mark.parametrize(("what", "call"), WAITING)
def test_what_waits_is_written_down(gpu, what, call):
    call(torch.zeros(8, device=DEVICE))
    assert [wait.what for wait in gpu.waits] == [what]
    assert gpu.waits[0].where.startswith("tests/benchmarks/test_rehearsal.py")


def test_what_does_not_wait_is_not(gpu):
    x = torch.zeros(8, device=DEVICE)
    x[x > 0] = 1.0
    x.copy_(torch.zeros(8).pin_memory(), non_blocking=True)
    torch.where(x > 0, x, -x).cumsum(0).sort()
    assert float(torch.zeros(())) == 1.0 and not gpu.waits


def test_the_command_tells_what_runs_what_waits_and_what_fails(capsys, monkeypatch):
    rehearsal.main(["--only", "logistic"])
    told = capsys.readouterr().out
    assert re.search(r"logistic regression +[\d.]+ s\n", told)
    assert "util/evaluation/frozen/logistic.py minimise" in told and "backward passes" in told

    def broken():
        def run(amp):
            raise RuntimeError("no such kernel")

        return [], run

    monkeypatch.setattr(rehearsal, "CASES", [Case("broken", broken)])
    with pytest.raises(SystemExit):
        rehearsal.main([])
    assert "FAILS: RuntimeError: no such kernel" in capsys.readouterr().out


def test_a_shallow_model_keeps_its_first_block():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(3)])
    first = model.blocks[0]
    assert list(shallow(model).blocks) == [first]
