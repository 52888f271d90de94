"""Whether transformers computes what a checkpoint's model does, from the folder that was written.

B images, h x w patches or cells.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.swin import is_swin
from exports.result import difference
from exports.source import MAE, SEGMENTER, SIMMIM_KIND, Source
from util.errors import UsageError, first_line

log = logging.getLogger(__name__)


@torch.no_grad()
def compare(source: Source, model: nn.Module, config: dict, folder: str) -> dict[str, float] | None:
    """Differences by the outputs' names; None: transformers is not installed.

    Args:
        model: the checkpoint's. config: what `config.json` holds.

    Raises:
        UsageError: transformers does not take all weights, or needs more.
    """
    try:
        import transformers
    except ImportError:
        log.warning("transformers is not installed: the folder is not compared")
        return None
    name = config["architectures"][0]
    options = {"add_pooling_layer": False} if name == "ViTModel" else {}
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        found, loaded = getattr(transformers, name).from_pretrained(
            folder, output_loading_info=True, **options
        )
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(
            f"--to huggingface: transformers {transformers.__version__} cannot load {name} "
            f"({first_line(error)})"
        ) from None
    finally:
        transformers.logging.set_verbosity(before)
    wrong = [f"{k} is {what}" for what, part in (("missing", "missing_keys"),
             ("unknown", "unexpected_keys"), ("of another shape", "mismatched_keys"))
             for k in loaded[part]]  # fmt: skip
    if wrong:
        raise UsageError(
            f"--to huggingface: transformers {transformers.__version__} reads {name} otherwise: "
            f"{'; '.join(wrong[:3])}"
        )
    images = source.images(2)
    if source.kind in (MAE, SIMMIM_KIND):
        return _masked(source, model, found.eval(), images)
    if source.kind == SEGMENTER:
        logits = F.interpolate(model(images), images.shape[2:], mode="bilinear")
        return {"logits": difference(found.eval()(images).logits, logits)}
    return _features(model, found.eval(), images)


def _features(model: nn.Module, found: nn.Module, images: Tensor) -> dict[str, float]:
    expected = model.forward_features(images)
    expected = expected.flatten(1, 2) if is_swin(model) else expected
    differences = {}
    base = found if hasattr(found, "embeddings") else getattr(found, found.base_model_prefix)
    tokens = base(images).last_hidden_state
    if is_swin(model):
        differences["patch features"] = difference(tokens, expected)
    else:
        differences["class token"] = difference(tokens[:, 0], expected[:, 0])
        differences["patch features"] = difference(tokens[:, 1:], expected[:, 1:])
    if model.num_classes:
        differences["logits"] = difference(found(images).logits, model(images))
    return differences


def _masked(source: Source, model: nn.Module, found: nn.Module, images: Tensor) -> dict:
    """The loss, and the pixels that are predicted, under the same noise."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(model.masks.noise_shape(len(images)), generator=generator)
    ids = model.draw_masks(images, noise)  # [B, 1, L]
    expected = model(images, noise)["rec"]
    ids_masked = model.split(ids)[1][:, 0]  # [B, M]
    if source.kind == MAE:
        output = found(images, noise=noise)
        pixels = output.logits.gather(
            1, ids_masked[..., None].expand(-1, -1, output.logits.shape[2])
        )
    else:
        is_masked = torch.zeros(ids[:, 0].shape, dtype=torch.bool).scatter(1, ids_masked, True)
        across = model.patch_size // found.config.patch_size
        mask = is_masked.unflatten(1, model.grid)  # [B, h, w]
        mask = mask.repeat_interleave(across, 1).repeat_interleave(across, 2)
        output = found(images, bool_masked_pos=mask.flatten(1))
        pixels = model.patchify(output.reconstruction)
        pixels = pixels.gather(1, ids_masked[..., None].expand(-1, -1, pixels.shape[2]))
    return {
        "loss": difference(output.loss, expected),
        "predicted pixels": difference(pixels, model.predict(images, ids)),
    }
