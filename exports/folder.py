"""The folder of an export: written aside and renamed, whole or not at all, and known again."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from util.errors import UsageError, first_line
from util.weights.checkpoint_file import sync_folder

MANIFEST = "export.json"  # what an export has written, by which `--overwrite` knows it


@contextlib.contextmanager
def written_aside(out: str, overwrite: bool) -> Iterator[tuple[str, dict]]:
    """A folder beside `out`, which takes its name, or its files' places, at the end; and a dict,
    whose content is written into it beside the names and checksums of its files.

    Nothing is left of the folder where the block raises.

    Raises:
        UsageError: a folder that exists, or holds what is no export's; a disk that is full or
            cannot be written.
    """
    out = os.path.abspath(out)
    check_free(out, overwrite)
    try:
        os.makedirs(os.path.dirname(out), exist_ok=True)
        aside = tempfile.mkdtemp(dir=os.path.dirname(out), prefix=f".{os.path.basename(out)}.")
    except OSError as error:
        raise UsageError(
            f"OUT {out} cannot be written ({error.strerror}): name another folder"
        ) from None
    try:
        about: dict = {}
        yield aside, about
        _seal(aside, about)
        check_free(out, overwrite)
        _put_in_place(aside, out)
    except OSError as error:
        raise UsageError(
            f"OUT {out} cannot be written ({error.strerror or error}): free space on its disk, or "
            "name another folder"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_free(out: str, overwrite: bool) -> None:
    """Raise UsageError where `out` exists, and `--overwrite` does not allow to replace it."""
    out = os.path.abspath(out)
    if not os.path.lexists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    if not overwrite:
        raise UsageError(f"OUT {out} exists: name a new folder, or give --overwrite")
    written = _manifest(out)
    if written is None:
        raise UsageError(
            f"--overwrite: {out} is no folder of this command (it has no {MANIFEST}): name another"
        )
    for name, digest in written.items():
        path = os.path.join(out, name)
        if os.path.isfile(path) and _digest(path) != digest:
            raise UsageError(
                f"--overwrite: {path} was changed after the export: move it away, or name another "
                "folder"
            )


def _manifest(out: str) -> dict[str, str] | None:
    try:
        with open(os.path.join(out, MANIFEST), encoding="utf-8") as file:
            files = json.load(file)["files"]
        is_plain = all(name == os.path.basename(name) for name in files)
        return dict(files) if is_plain else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            found.update(block)
    return found.hexdigest()


def _seal(aside: str, about: Mapping) -> None:
    """Flush the files to the disk, and write down which they are."""
    files = {}
    for name in sorted(os.listdir(aside)):
        path = os.path.join(aside, name)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[name] = _digest(path)
    write_json(os.path.join(aside, MANIFEST), {**about, "files": files})
    os.chmod(aside, 0o777 & ~_umask())  # mkdtemp's folders are their owner's alone


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _put_in_place(aside: str, out: str) -> None:
    old = _manifest(out) if os.path.isdir(out) else None
    if old is None:
        os.replace(aside, out)  # over an empty folder, too
    else:  # what else lies in it stays
        new = os.listdir(aside)
        for name in ({*new} - {*old, MANIFEST}) & {*os.listdir(out)}:
            raise UsageError(
                f"--overwrite: {os.path.join(out, name)} is of no export: move it away, or name "
                "another folder"
            )
        for name in sorted(new, key=lambda name: name == MANIFEST):
            os.replace(os.path.join(aside, name), os.path.join(out, name))
        for name in set(old) - set(new):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(out, name))
    sync_folder(os.path.dirname(out))


def write_json(path: str, content: Mapping) -> None:
    """Write plain values as JSON; raises OSError."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def write_tensors(folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors`.

    Raises:
        UsageError: safetensors is not installed. OSError: what could not be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError:
        raise UsageError("an export needs safetensors: pip install safetensors") from None
    own = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    try:
        save_file(own, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(first_line(error)) from None
