"""Features of images from a frozen encoder: its final output, its blocks', and of masked images.

Shapes: B images, N masks per image, K visible of L = h·w patches, C channels, D encoder width.
"""

import argparse
import copy

import torch
from torch import Tensor, nn

from encoders.load import build_for, open_checkpoint
from encoders.position_bias import has_position_biases
from encoders.swin import is_swin
from util.data.transforms import Normalize
from util.flags.settings import fit_channels
from util.randomness import STREAM_INIT, seed_libraries

Outputs = dict[str, Tensor]
CLASS_TOKEN, PATCH_MEAN, PIXELS = "class token", "patch mean", "pixels"
BASELINES = ("untrained", "pixels")


class FrozenEncoder(nn.Module):
    """A downstream encoder, in eval mode and without gradients, under one interface.

    Args:
        encoder: a timm ViT, BEiT or Swin without a head; None: the images themselves.
        normalize: of images as the loader gives them.
    """

    def __init__(self, encoder: nn.Module | None, normalize: nn.Module):
        super().__init__()
        self.encoder, self.normalize = encoder, normalize
        self.eval().requires_grad_(False)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of an image's features that this encoder has; a Swin has no class token."""
        if self.encoder is None:
            return (PIXELS,)
        return (CLASS_TOKEN, PATCH_MEAN) if self._num_prefix() else (PATCH_MEAN,)

    @property
    def depth(self) -> int:
        """How many blocks (of a Swin: stages) have outputs; 0 for pixels."""
        if self.encoder is None:
            return 0
        if is_swin(self.encoder):
            return len(self.encoder.layers)
        return len(self.encoder.blocks)

    def _num_prefix(self) -> int:
        return 0 if is_swin(self.encoder) else self.encoder.num_prefix_tokens

    @torch.no_grad()
    def forward(self, imgs: Tensor, with_blocks: bool = True) -> Outputs:
        """images [B, C, H, W] -> features [B, D] by name: each of `kinds` of the final, normed
        output and, with_blocks, of the output of block i, before any norm, as `block i NAME`."""
        imgs = self.normalize(imgs)
        if self.encoder is None:
            return {PIXELS: imgs.flatten(1)}
        if not with_blocks:
            return self._summaries(self.encoder.forward_features(imgs))
        final, blocks = self._with_blocks(imgs)
        found = self._summaries(final)
        for number, output in enumerate(blocks):
            for name, value in self._summaries(output, normed=False).items():
                found[f"block {number} {name}"] = value
        return found

    def _with_blocks(self, imgs: Tensor) -> tuple[Tensor, list[Tensor]]:
        outputs: list[Tensor] = []
        stages = self.encoder.layers if self._num_prefix() == 0 else self.encoder.blocks
        hooks = [
            stage.register_forward_hook(lambda *call: outputs.append(call[2])) for stage in stages
        ]
        try:
            final = self.encoder.forward_features(imgs)
        finally:
            for hook in hooks:
                hook.remove()
        return final, outputs

    def _summaries(self, tokens: Tensor, normed: bool = True) -> Outputs:
        """Class token and patch mean of tokens [B, 1 + L, D], or of a map [B, h, w, D]."""
        if tokens.ndim == 4:
            tokens = tokens.flatten(1, 2)
        prefix = self._num_prefix()
        mean = tokens[:, prefix:].mean(1)
        if normed and prefix and isinstance(self.encoder.norm, nn.Identity):
            mean = self.encoder.fc_norm(mean)  # fine-tuned on the mean, which is normed after
        return ({CLASS_TOKEN: tokens[:, 0]} if prefix else {}) | {PATCH_MEAN: mean}

    @torch.no_grad()
    def layers(self, imgs: Tensor) -> list[Outputs]:
        """What each block gives, and last the final, normed output: images [B, C, H, W] -> its
        summaries of `kinds`, [B, D] each, and its patch tokens in their places, `maps`
        [B, h, w, D]."""
        final, blocks = self._with_blocks(self.normalize(imgs))
        outputs = [(tokens, False) for tokens in blocks] + [(final, True)]
        return [self._summaries(x, normed) | {"maps": self._maps(x)} for x, normed in outputs]

    def _maps(self, tokens: Tensor) -> Tensor:
        """Patch tokens in their places: [B, 1 + L, D] -> [B, h, w, D]."""
        if tokens.ndim == 4:
            return tokens
        return tokens[:, self._num_prefix() :].unflatten(1, self.encoder.patch_embed.grid_size)

    @torch.no_grad()
    def patch_tokens(self, imgs: Tensor) -> Tensor:
        """The final, normed patch tokens [B, L, D], row by row."""
        tokens = self.encoder.forward_features(self.normalize(imgs))
        return tokens.flatten(1, 2) if tokens.ndim == 4 else tokens[:, self._num_prefix() :]

    @torch.no_grad()
    def masked_views(self, imgs: Tensor, ids_visible: Tensor) -> Tensor | None:
        """The class token of what each of N masks leaves visible of an image: [B, N, D].

        None where an encoder cannot leave patches out (a Swin, relative positions, pixels).

        Args:
            ids_visible: [B, N, K], the patches that each mask leaves visible.
        """
        vit = self.encoder
        plain = getattr(vit, "pos_embed", None) is not None and hasattr(vit, "_pos_embed")
        is_biased = hasattr(vit, "rel_pos_bias") or has_position_biases(vit)
        if not plain or self._num_prefix() != 1 or is_biased:
            return None
        num_masks = ids_visible.shape[1]
        x = vit._pos_embed(vit.patch_embed(self.normalize(imgs)))  # [B, 1 + L, D]
        ids = 1 + ids_visible.flatten(0, 1)  # [B·N, K]
        ids = torch.cat([ids.new_zeros(len(ids), 1), ids], dim=1)  # the class token
        x = x.repeat_interleave(num_masks, 0).gather(1, ids[..., None].expand(-1, -1, x.shape[2]))
        z = vit.norm(vit.blocks(vit.norm_pre(x)))  # [B·N, 1 + K, D]
        return z[:, 0].unflatten(0, (-1, num_masks))


def open_frozen(
    args: argparse.Namespace, name: str, like: argparse.Namespace | None = None
) -> tuple[FrozenEncoder, argparse.Namespace]:
    """The encoder that a word of the command line means, and the flags that are its own.

    Args:
        name: a checkpoint, or one of `BASELINES`.
        like: the flags of the first checkpoint, after which a baseline is made.
    """
    seed_libraries(args.seed, STREAM_INIT)  # a baseline's weights depend on nothing else
    flags = copy.copy(like if name in BASELINES and like else args)
    flags.settings = copy.deepcopy(flags.settings)
    if name in BASELINES:
        fit_channels(flags)
    if name == "pixels":
        return FrozenEncoder(None, Normalize(flags.mean, flags.std)), flags
    pretrained = None
    if name != "untrained":
        pretrained = open_checkpoint(name, flags, flag="CHECKPOINT")
    encoder = build_for(pretrained, flags)
    return FrozenEncoder(encoder, Normalize(flags.mean, flags.std)), flags
