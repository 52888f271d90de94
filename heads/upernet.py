"""UperNet [Xiao et al., 2018] on a ViT, BEiT or Swin: images -> class logits of each pixel.

The decoder is segmentation-models-pytorch's, without the norms of its inputs, which the published
one does not have. A plain ViT becomes its encoder as in BEiT: the maps of four blocks, rescaled.
B images, K classes, H x W pixels, h x w cells of the first level, C channels of the decoder.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from util.cluster.sync_batch_norm import synchronise_batch_norms
from util.errors import UsageError
from util.training.drop_path import GivenDrop

DROPOUT = 0.1  # of channels, before a classifier
AUXILIARY_CHANNELS = 256


class UperNet(nn.Module):
    """An encoder under UperNet's head and an auxiliary FCN head.

    Args:
        encoder: a timm ViT, BEiT or Swin as `encoders.load.build_backbone` makes it.
        channels: C; None: a ViT's width, as in BEiT and MAE; of a Swin at most 512, as published.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, channels: int | None = None):
        super().__init__()
        self.encoder = encoder
        self.unit = encoder.patch_embed.patch_size[0]  # which divides an image's sides, in pixels
        is_swin = isinstance(encoder, SwinTransformer)
        if is_swin:
            widths = [stage.blocks[0].dim for stage in encoder.layers]
            self.unit *= 2 ** (len(widths) - 1)
            self.pyramid: nn.Module = StageNorms(widths)
            self.ids_blocks = list(range(len(widths)))
        else:
            widths = [encoder.embed_dim] * 4
            if min(encoder.patch_embed.grid_size) < 2:  # of which the last level is half
                raise UsageError(f"--input_size: give at least two patches a side, {2 * self.unit}")
            self.pyramid = RescaledBlocks(encoder.embed_dim)
            self.ids_blocks = quarter_blocks(len(encoder.blocks))
        self.channels = channels or (min(widths[-1], 512) if is_swin else widths[-1])
        self.decoder = _decoder(widths, self.channels)
        self.classifier = _classifier(self.channels, num_classes)
        # The third level of four, and the first of two.
        self.auxiliary = AuxiliaryHead(
            widths[-2], min(self.channels, AUXILIARY_CHANNELS), num_classes
        )
        for module in (self.pyramid, self.decoder, self.classifier, self.auxiliary):
            module.apply(_initialise)
        synchronise_batch_norms(self)

    def no_weight_decay(self) -> set[str]:
        """As published: of a ViT or BEiT all but 1-D parameters decay, positions and tables of
        position biases, too; of a Swin those do not."""
        if not isinstance(self.encoder, SwinTransformer):
            return set()
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def features(self, imgs: Tensor) -> list[Tensor]:
        """The levels [B, widths[i], h / 2^i, w / 2^i], the finest first."""
        maps = self.encoder.forward_intermediates(
            imgs, indices=self.ids_blocks, intermediates_only=True
        )
        return self.pyramid(maps)

    def forward(self, imgs: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """images [B, ·, H, W] -> logits [B, K, h, w]; in training also the auxiliary head's."""
        levels = self.features(imgs)
        # The library counts levels from the full image on, and passes over the first two.
        logits = self.classifier(self.decoder([imgs, imgs, *levels]))
        return (logits, self.auxiliary(levels[-2])) if self.training else logits


def quarter_blocks(depth: int) -> list[int]:
    """The last block of each quarter or so, as published: of 12 blocks 3, 5, 7, 11."""
    return [depth // 3 - 1, depth // 2 - 1, 2 * depth // 3 - 1, depth - 1]


class RescaledBlocks(nn.Module):
    """A plain ViT's maps, all of stride p, at strides p/4, p/2, p and 2p [BEiT, 2022]."""

    def __init__(self, dim: int):
        super().__init__()
        self.levels = nn.ModuleList([
            nn.Sequential(_doubled(dim), nn.BatchNorm2d(dim), nn.GELU(), _doubled(dim)),
            _doubled(dim), nn.Identity(), nn.MaxPool2d(2),
        ])  # fmt: skip

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def _doubled(dim: int) -> nn.Module:
    return nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)


class StageNorms(nn.Module):
    """A layer norm for the map of each of a Swin's stages, as published."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for width in widths])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [
            norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            for norm, x in zip(self.norms, maps, strict=True)
        ]


class AuxiliaryHead(nn.Module):
    """One convolution and a classifier on an inner level; it helps in training only."""

    def __init__(self, in_chans: int, channels: int, num_classes: int):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = _classifier(channels, num_classes)

    def forward(self, level: Tensor) -> Tensor:
        return self.classifier(F.relu(self.norm(self.conv(level))))


def _decoder(widths: Sequence[int], channels: int) -> nn.Module:
    try:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
    except ImportError:
        raise UsageError(
            "UperNet's decoder is segmentation-models-pytorch's: pip install "
            "segmentation-models-pytorch"
        ) from None
    decoder = UPerNetDecoder([0, 0, *widths], decoder_channels=channels)
    decoder.feature_norms = nn.ModuleList()
    return decoder


def _classifier(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(GivenDrop(DROPOUT, channels), nn.Conv2d(channels, num_classes, 1))


def _initialise(module: nn.Module) -> None:
    """As published: He et al.'s for convolutions, a small normal one for classifiers."""
    if isinstance(module, nn.Conv2d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
