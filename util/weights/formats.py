"""Weights in the formats of others: safetensors files, folders of transformers and timm.

A format is told by a file's first bytes. Nothing that is read here can run code.
"""

import json
import os
from typing import Any

from util.errors import UsageError, first_line
from util.weights.checkpoint_file import read_checkpoint

# What a folder may hold, the preferred first; an index names the files of a model in parts.
NAMES = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
CONFIGS = ("config.json", "preprocessor_config.json")


def read_weights(path: str) -> tuple[dict, dict]:
    """Read a checkpoint file or a model's folder.

    Returns:
        The file's content, and the entries of `config.json` and `preprocessor_config.json`, empty
        where there are none.

    Raises:
        UsageError: nothing there, or something damaged or refused; the line names the file.
    """
    if os.path.isdir(path):
        name = next((n for n in NAMES if os.path.isfile(os.path.join(path, n))), None)
        if name is None:
            raise UsageError(
                f"{path} is a folder without weights: name one with {' or '.join(NAMES)}, or a file"
            )
        return read_weights(os.path.join(path, name))
    folder, name = os.path.split(path)
    config: dict = {}
    if name in NAMES:
        for beside in (os.path.join(folder, n) for n in CONFIGS):
            config |= _read_json(beside) if os.path.isfile(beside) else {}
    if name.endswith(".index.json") and os.path.isfile(path):
        return _read_parts(path), config
    return _read_file(path), config


def _read_parts(index: str) -> dict:
    weight_map = _read_json(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or any(not isinstance(n, str) or n != os.path.basename(n) for n in names):
        raise UsageError(f"{index} names no files of its own folder: the index is damaged")
    weights = {}
    for name in sorted(names):
        weights |= _read_file(os.path.join(os.path.dirname(index), name))
    return weights


def _read_file(path: str) -> dict:
    if not _is_safetensors(path):
        return read_checkpoint(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UsageError(f"{path} is a safetensors file: pip install safetensors") from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(
            f"{path} is damaged ({first_line(error)[:200]}): copy it anew, or name another file"
        ) from None


def _is_safetensors(path: str) -> bool:
    """Eight bytes of a length, then a JSON object of that length."""
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): check its rights") from None
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < 2**30


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {str(error).splitlines()[0][:200]}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: it holds a {type(content).__name__}")
    return content
