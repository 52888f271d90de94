"""--log_to: what a service gets, that a requeued run goes on there, and what may go wrong."""

import argparse
import importlib.machinery
import sys
import types

import pytest

from util.errors import UsageError
from util.flags.parser import SERVICES, service
from util.training.tracker import Tracker


@pytest.fixture(params=SERVICES)
def fake(request, monkeypatch):
    """A module in the place of the service's, which keeps its calls."""
    module = types.ModuleType(request.param)
    module.__spec__ = importlib.machinery.ModuleSpec(request.param, None)
    module.calls = []

    def keeper(kind: str):
        return lambda *words, **about: module.calls.append((kind, words, about))

    for name in ("init", "log", "finish"):
        setattr(module, name, keeper(name))
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_a_requeued_run_goes_on_under_its_name(fake, tmp_path):
    to = service(f"{fake.__name__}:own")
    for step in (1, 2):
        one = Tracker(to, str(tmp_path), {"lr": 1e-3})
        one.log({"loss": 0.5}, step)
        one.close()
    begun = [about for name, _, about in fake.calls if name == "init"]
    key = "id" if fake.__name__ == "wandb" else "name"
    assert begun[0] == begun[1] and begun[0][key].startswith(tmp_path.name)
    assert begun[0]["project"] == "own" and begun[0]["resume"] == "allow"
    logged = [(args[0], about["step"]) for name, args, about in fake.calls if name == "log"]
    assert logged == [({"loss": 0.5}, 1), ({"loss": 0.5}, 2)]
    assert Tracker(to, str(tmp_path / "other"), {}) and fake.calls[-1][2][key] != begun[0][key]


def test_a_service_that_fails_ends_no_training(fake, tmp_path, caplog):
    def fails(*_, **__):
        raise ConnectionError("no network\nat all")

    one = Tracker(fake.__name__, str(tmp_path), {})
    fake.log = fake.finish = fails
    one.log({}, 1)
    one.log({}, 2)
    one.close()
    assert caplog.text.count("--log_to is lost (no network)") == 1
    fake.init = fails
    with pytest.raises(UsageError, match="cannot begin \\(no network\\)"):
        Tracker(fake.__name__, str(tmp_path), {})


def test_a_missing_package_or_another_word_is_refused_at_once(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(argparse.ArgumentTypeError, match="pip install wandb"):
        service("wandb")
    with pytest.raises(argparse.ArgumentTypeError, match="wandb or trackio"):
        service("tensorboard")
    assert service("") == ""
