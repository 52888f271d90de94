"""What a checkpoint may hold beside tensors: numbers of numpy, and nothing that could run."""

import os
import pickle

import numpy as np
import pytest
import torch

from util.errors import UsageError
from util.weights.checkpoint_file import read_checkpoint

KINDS = ("bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", "float16",
         "float32", "float64", "complex64")  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_of_numpys_is_read(tmp_path, kind, zipped):
    value = np.dtype(kind).type(1)
    state = {"best_acc": value, "history": [value, {"deep": value}], "w": torch.ones(2)}
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(str(tmp_path / "a.pth"))
    assert found["best_acc"] == found["history"][1]["deep"] == value
    assert found["best_acc"].dtype == np.dtype(kind)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_files_of_either_numpy(tmp_path, module):
    """Version 2 has moved the function that makes its numbers."""
    torch.save({"x": np.float64(0.25)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    data = (tmp_path / "a.pth").read_bytes()
    for name in ("numpy.core.multiarray", "numpy._core.multiarray"):
        data = data.replace(b"c" + name.encode() + b"\n", b"c" + module.encode() + b"\n")
    assert module.encode() in data
    (tmp_path / "a.pth").write_bytes(data)
    assert read_checkpoint(str(tmp_path / "a.pth")) == {"x": 0.25}


class Runs:
    """Its unpickling would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Loads(Runs):
    """The same by numpy's own loader of pickles."""

    def __reduce__(self):
        return np.load, (self.path, None, True)


@pytest.mark.parametrize("kind", [Runs, Loads])
def test_what_could_run_is_refused_and_did_not(tmp_path, kind):
    made = tmp_path / "made"
    torch.save({"x": np.float64(1), "y": kind(str(made))}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match="nothing of it was run"):
        read_checkpoint(str(tmp_path / "a.pth"))
    assert not made.exists()


def test_an_object_inside_a_number_is_not_unpickled(tmp_path):
    made = tmp_path / "made"
    make = np.float64(0).__reduce__()[0]

    class Number:
        def __reduce__(self):
            return make, (np.dtype("O"), pickle.dumps(Runs(str(made))))

    torch.save({"x": Number()}, tmp_path / "a.pth")
    try:
        found = read_checkpoint(str(tmp_path / "a.pth"))
    except UsageError:
        found = None
    assert not made.exists() and (found is None or isinstance(found["x"], bytes))
