"""BEiT's encoder for downstream use: timm's, into which SimMIM's ViT fits, too."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from util.checks import image_size


def build_beit(
    architecture: dict,
    num_classes: int,
    img_size: int | Sequence[int],
    in_chans: int = 3,
    global_pool: bool = True,
    drop_path: float = 0.0,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """A classifier, images [B, C, H, W] -> logits [B, num_classes], as `encoders.vit.build_vit`.

    Args:
        architecture: the arguments of timm's `Beit`, and `eps` of the layer norms.
    """
    from timm.models.beit import Beit

    options = {k: v for k, v in architecture.items() if k not in ("family", "eps")}
    model = Beit(
        img_size=image_size(img_size, options["patch_size"]), in_chans=in_chans,
        num_classes=num_classes, global_pool="avg" if global_pool else "token",
        drop_path_rate=drop_path, norm_layer=partial(nn.LayerNorm, eps=architecture["eps"]),
        **options,
    )  # fmt: skip
    model.set_grad_checkpointing(grad_checkpointing)
    model.family = "beit"
    return model
