"""A checkpoint as a program of `torch.export`, which runs without this project or timm.

B images of C channels and H x W pixels, L patches, D the encoder's width, K classes.
"""

import io
import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.swin import is_swin
from exports.result import Written, check, difference
from exports.source import CLASSIFIER, DETECTOR, PROBE, SEGMENTER, Source
from util.errors import UsageError, first_line

NAME = "model.pt2"
BATCHES = (1, 7)  # with which a program is compared


class Outputs(nn.Module):
    """What a server is given: normalised images [B, C, H, W] -> tensors by name.

    Of a classifier or probe `logits` [B, K], of a segmenter [B, K, H, W]; of an encoder
    `class_token` [B, D], which a Swin lacks, and `patch_tokens` [B, L, D], row by row.
    """

    def __init__(self, source: Source):
        super().__init__()
        if source.kind == DETECTOR:
            raise UsageError("a detector's boxes are no fixed program: --to safetensors")
        self.kind = source.kind
        self.model = source.segmenter() if self.kind == SEGMENTER else source.model()
        self.eval().requires_grad_(False)

    @property
    def names(self) -> list[str]:
        if self.kind in (CLASSIFIER, PROBE, SEGMENTER):
            return ["logits"]
        return ["patch_tokens"] if is_swin(self.model) else ["class_token", "patch_tokens"]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.kind == SEGMENTER:
            size = images.shape[2:]
            return {"logits": F.interpolate(self.model(images), size, mode="bilinear")}
        if self.kind in (CLASSIFIER, PROBE):
            return {"logits": self.model(images)}
        tokens = self.model.forward_features(images)
        if is_swin(self.model):
            return {"patch_tokens": tokens.flatten(1, 2)}
        prefix = self.model.num_prefix_tokens
        return {"class_token": tokens[:, 0], "patch_tokens": tokens[:, prefix:]}


def program(source: Source) -> tuple[Outputs, torch.export.ExportedProgram]:
    """The model, and its program for any number of images of the model's size.

    Raises:
        UsageError: a model that torch.export cannot follow.
    """
    model = Outputs(source)
    batch = {0: torch.export.Dim("batch", min=1)}
    try:
        found = torch.export.export(model, (source.images(2),), dynamic_shapes={"images": batch})
    except Exception as error:  # which has no kind of its own for what it cannot follow
        raise UsageError(
            f"torch.export of torch {torch.__version__} cannot follow the model "
            f"({first_line(error)}): --to timm or huggingface"
        ) from None
    return model, found


def write(source: Source, folder: str) -> Written:
    """Write `model.pt2`, and run what is read of it."""
    notes = source.leave_out_decoder()
    model, found = program(source)
    path = os.path.join(folder, NAME)
    content = io.BytesIO()  # torch's own writing to a full disk ends the process
    torch.export.save(found, content)
    with open(path, "wb") as file:
        file.write(content.getbuffer())
    loaded = torch.export.load(path).module()
    written = Written("pytorch", [
        "import torch",
        f"model = torch.export.load('OUT/{NAME}').module()",
        f"found = model(images)  # a dict: {', '.join(model.names)}",
    ], notes=notes)  # fmt: skip
    written.differences = compare(source, model, lambda images: loaded(images))
    check("torch", written.differences)
    return written


@torch.no_grad()
def compare(source: Source, model: Outputs, run) -> dict[str, float]:
    """Differences by the outputs' names and batch sizes.

    Args:
        run: images -> the export's outputs by name.
    """
    differences = {}
    for count in BATCHES:
        images = source.images(count)
        expected, found = model(images), run(images)
        for name in model.names:
            label = f"{name.replace('_', ' ')}, {count} image(s)"
            differences[label] = difference(found[name], expected[name])
    return differences
