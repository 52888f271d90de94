"""Weights are found in whatever wraps them: dicts of a file, and modules around modules."""

import itertools

import pytest
import torch

from encoders.file_parts import find_weights
from encoders.layouts import open_encoder
from encoders.load import build_encoder
from util.errors import UsageError

NAMES = ("net", "encoder", "backbone", "module", "model", "state_dict", "network", "my_own_name")


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return build_encoder("vit_nano_patch2", 0, 8, 1).state_dict()


@pytest.fixture
def opens(tmp_path, weights):
    """Asserts that a file's content gives the encoder's weights, all of them and unchanged."""

    def check(content):
        torch.save(content, tmp_path / "file.pth")
        found = open_encoder(str(tmp_path / "file.pth")).weights
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in weights)

    return check


@pytest.mark.parametrize("wrappers", list(itertools.product(NAMES, repeat=2)), ids="-".join)
def test_wrappers_of_a_file_in_any_nesting(opens, weights, wrappers):
    beside = dict(epoch=3, optimizer={"state": {0: {"step": torch.ones(1)}}}, args={"lr": 0.1})
    content = weights
    for name in reversed(wrappers):
        content = beside | {name: content}
    opens(content)
    opens({wrappers[0]: {"head": {"weight": torch.ones(2, 2)}}} | content)
    opens({wrappers[0]: {}} | {"deeper": {"still": content}})


@pytest.mark.parametrize("prefixes", list(itertools.product(NAMES[:6], repeat=2)), ids=".".join)
def test_prefixes_of_keys_in_any_nesting(opens, weights, prefixes):
    named = {".".join([*prefixes, key]): value for key, value in weights.items()}
    beside = {"classifier.weight": torch.ones(2, 2)} if set(prefixes) != {"module"} else {}
    opens({"state_dict": named | beside})


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "module",
                                     "_checkpoint_wrapped_module"])  # fmt: skip
def test_wrapped_modules_inside_a_model(opens, weights, wrapper):
    """torch.compile of each block, of the whole, or of both."""
    blocks = {
        ".".join([*key.split(".")[:2], wrapper, *key.split(".")[2:]])
        if key.startswith("blocks.") else key: value for key, value in weights.items()
    }  # fmt: skip
    assert any(wrapper in key for key in blocks)
    opens(blocks)
    opens({f"{wrapper}.{key}": value for key, value in blocks.items()})
    opens({"model": {f"encoder.{wrapper}.{key}": value for key, value in blocks.items()}})


def test_the_encoder_is_taken_and_not_what_stands_beside_it(weights):
    other = {"patch_embed.proj.weight": torch.zeros(1)}
    found, aside = find_weights({"model_ema": other, "model": weights})
    assert found is not other and len(found) == len(weights) and aside == ["model_ema"]
    found, aside = find_weights({"model": {"decoder.weight": torch.ones(1)}, "encoder": weights})
    assert found.keys() == weights.keys() and aside == ["model"]
    found, _ = find_weights(weights | {"extra": {"patch_embed.proj.weight": torch.zeros(1)}})
    assert found.keys() == weights.keys()


def test_a_file_that_holds_itself_has_an_end():
    content: dict = {}
    content["model"] = content
    assert find_weights(content)[0] == {}


@pytest.mark.parametrize(
    ("content", "keys"),
    [({"epoch": 1, "optimizer": {}, "best": 0.5, "lr": 1}, "epoch, optimizer, best"), ({}, "none"),
     ({"model": {}, "args": {}}, "model, args"), ({1: 2, "a": 3}, "1, a")],
)  # fmt: skip
def test_a_file_without_weights_is_refused_with_its_first_keys(tmp_path, content, keys):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UsageError, match=f"file.pth holds no model weights: .* begin with {keys};"):
        open_encoder(str(tmp_path / "file.pth"))
