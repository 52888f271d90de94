"""A checkpoint as an ONNX file for any number of images, compared by onnxruntime."""

import contextlib
import logging
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from exports.result import Written, check
from exports.source import Source
from exports.to_torch import compare, program
from util.errors import UsageError, first_line

log = logging.getLogger(__name__)

NAME = "model.onnx"
MAX_BYTES = 2**31 - 2**27  # of a file of protocol buffers; larger weights stand beside it


def write(source: Source, folder: str) -> Written:
    """Write `model.onnx`, with its weights beside it where it would be above 2 GB.

    Raises:
        UsageError: onnx or onnxscript is not installed, or cannot hold the model.
    """
    try:
        import onnx  # noqa: F401 - asked for before minutes are spent
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"--to onnx needs {error.name}: pip install onnx onnxscript onnxruntime"
        ) from None
    notes = source.leave_out_decoder()
    model, found = program(source)
    num_bytes = sum(w.numel() * w.element_size() for w in model.state_dict().values())
    path = os.path.join(folder, NAME)
    try:
        with _silence():
            torch.onnx.export(
                found, (source.images(2),), path, dynamo=True, input_names=["images"],
                output_names=model.names, external_data=num_bytes > MAX_BYTES,
            )  # fmt: skip
    except OSError:
        raise
    except Exception as error:  # of whichever of its passes
        raise UsageError(
            f"--to onnx: torch {torch.__version__} cannot write the model ({first_line(error)}): "
            "--to torch"
        ) from None
    written = Written("onnx", [
        "import onnxruntime",
        f"session = onnxruntime.InferenceSession('OUT/{NAME}')",
        f"found = session.run(None, {{'images': images}})  # {', '.join(model.names)}",
    ], notes=notes)  # fmt: skip
    run = _runner(path)
    if run is not None:
        written.differences = compare(source, model, run)
        check("onnx", written.differences)
    return written


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what the exporter prints and logs of its passes."""
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _runner(path: str):
    """A function that runs the file: images -> outputs by name; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        log.warning("onnxruntime is not installed: the file is not compared")
        return None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = session.run(None, {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run
