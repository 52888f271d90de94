"""Each path that is given is looked at first: one line names the flag and what is not there."""

import os

import pytest

from reproduction import places
from util.errors import UsageError


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x") if path.suffix else path.mkdir()
    return str(root)


WHOLE = {
    "imagenet": ("train/", "val/"),
    "imagenet_a": ("n01/a.png",),
    "imagenet_c": ("notes/", "fog/1/n01/a.png"),
    "coco": places.COCO,
    "ade20k": places.ADE20K,
    "checkpoints": (),
    "out": (),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_whole_passes_and_a_missing_part_is_named(tmp_path, name):
    (tmp_path / "x").mkdir()
    places.check({name: tree(tmp_path / "x", *WHOLE[name])})
    places.check({name: ""})
    names = WHOLE[name][-1:] if name in ("imagenet_a", "imagenet_c") else WHOLE[name]
    for one in names:
        os.rename(tmp_path / "x" / one.split("/")[0], tmp_path / "away")
        with pytest.raises(UsageError) as refused:
            places.check({name: str(tmp_path / "x")})
        assert str(refused.value).startswith(f"--{name} {tmp_path}/x: ")
        assert one.split("/")[0] in str(refused.value) or "layout is not" in str(refused.value)
        os.rename(tmp_path / "away", tmp_path / "x" / one.split("/")[0])
    if name != "out":
        with pytest.raises(UsageError, match=f"--{name} .*: there is no such folder"):
            places.check({name: str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"n01_1.JPEG\n", ""),
        (b" \n", "is empty"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (None, "No such"),
    ],
)
def test_a_list_has_lines(tmp_path, content, why):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    if not why:
        return places.check({"one_percent_list": str(path)})
    with pytest.raises(UsageError, match=f"--one_percent_list .*{why}"):
        places.check({"one_percent_list": str(path)})


def test_out_may_be_made_and_is_not(tmp_path, monkeypatch):
    places.check({"out": str(tmp_path / "a" / "b")})
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out .*file is no folder"):
        places.check({"out": str(tmp_path / "file" / "b")})
    monkeypatch.setattr(places.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UsageError, match=r"--out .* cannot be written"):
        places.check({"out": str(tmp_path / "a")})
