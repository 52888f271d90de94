"""MAE [He et al., 2022]: an encoder sees a quarter of the patches, a decoder predicts the others.

`MAEViT` builds and trains alone; `models_mimae` adds the paper's masks and its mutual information.
Its mask, patches and L_rec are in `models_masked`.

Shapes: B images on this rank, N masks per image (1 in MAE), L patches per image, K of them visible
to a mask and M masked ones that are decoded, D encoder width, p patch size, C channels, P = p·p·C
pixels of a patch.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encoders.pos_embed import sincos_pos_embed
from encoders.vit import NORM
from encoders.vit import SIZES as ENCODER_SIZES
from models_masked import MaskedImageModel, RandomMasks, take_rows
from util.checks import image_size
from util.errors import UsageError

# Our choices for the `tiny` and `nano` encoders: a small decoder, and embedded patches that are as
# large as their positions.
_TINY = dict(decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4, unit_patches=True)
SIZES = {
    name: size | (_TINY if name.startswith(("vit_tiny", "vit_nano")) else {})
    for name, size in ENCODER_SIZES.items()
}

NewNorm = Callable[[int], nn.Module]  # a norm of a width


# --------------------------------------------------------------------------------------- the ViT


def new_blocks(
    dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0, norm_layer: NewNorm = NORM
) -> nn.ModuleList:
    """`depth` transformer blocks of width `dim`, as MAE has them."""
    from timm.models.vision_transformer import Block

    options = dict(mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm_layer)
    return nn.ModuleList([Block(dim, num_heads, **options) for _ in range(depth)])


def draw_weights(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the weights of a network's linear layers as MAE does: Xavier uniform, biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)


class ViTEncoder:
    """The parts of a ViT that is pre-trained, under MAE's names, for a module to take on."""

    grad_checkpointing = False

    def add_encoder(
        self, grid: tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, depth: int,
        num_heads: int, mlp_ratio: float = 4.0, norm_layer: NewNorm = NORM,
    ) -> None:  # fmt: skip
        """Make patch embedding, class token, fixed position embedding, blocks and final norm."""
        from timm.layers import PatchEmbed

        img_size = (grid[0] * patch_size, grid[1] * patch_size)
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        position = sincos_pos_embed(embed_dim, grid)  # [1, 1 + L, D]
        self.pos_embed = nn.Parameter(position, requires_grad=False)
        self.blocks = new_blocks(embed_dim, depth, num_heads, mlp_ratio, norm_layer)
        self.norm = norm_layer(embed_dim)

    def encode_patches(self, x: Tensor) -> Tensor:
        """Class token, blocks and final norm: embedded patches with their positions
        [rows, K, D] -> [rows, 1 + K, D]."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.run_blocks(self.blocks, torch.cat([cls_token, x], dim=1)))

    def run_blocks(self, blocks: nn.ModuleList, x: Tensor, num_read: int = 0) -> Tensor:
        """x [rows, T, ·] -> [rows, T, ·]; its `num_read` last tokens where only they are read."""
        for block in blocks:
            if num_read and block is blocks[-1]:
                block = partial(_last_tokens, block, num_read)
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def _last_tokens(block: nn.Module, count: int, x: Tensor) -> Tensor:
    """A block's last `count` tokens, which attend to all: x [rows, T, ·] -> [rows, count, ·].

    The decoder's blocks have neither layer scale nor drop path.
    """
    x = (x + block.attn(block.norm1(x)))[:, -count:]
    return x + block.mlp(block.norm2(x))


class MAEViT(ViTEncoder, MaskedImageModel):
    """MAE with a ViT: images -> the loss of a batch.

    Args:
        img_size: pixels, a number or (height, width), divisible by `patch_size`.
        mask_ratio: masked share of the patches.
        norm_pix_loss: normalise the pixels of each target patch.
        pred_ratio: share of the masked patches that are decoded in training, a mask's first in its
            order, which is random; 1 is MAE.
        grad_checkpointing: recompute the blocks in the backward pass, to save memory.
        unit_patches: draw the patch embedding so that unit pixels keep their variance, at std
            1/√P. At ViT-B/16, where P is the width, that is MAE's; on small patches MAE's
            leaves nearly nothing beside the positions.

    Raises:
        UsageError: sizes and shares that cannot be used; the line names the flag.
    """

    def __init__(
        self, img_size: int | Sequence[int] = 224, patch_size: int = 16, in_chans: int = 3,
        embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
        decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0, norm_layer: NewNorm = NORM, mask_ratio: float = 0.75,
        norm_pix_loss: bool = False, pred_ratio: float = 1.0, grad_checkpointing: bool = False,
        unit_patches: bool = False,
    ):  # fmt: skip
        height, width = image_size(img_size, patch_size)
        grid = (height // patch_size, width // patch_size)
        super().__init__(grid, patch_size, in_chans, norm_pix_loss)
        if not 0 < pred_ratio <= 1:
            raise UsageError(f"--pred_ratio {pred_ratio} is not above 0 and at most 1 (MAE's)")
        self.masks, self.pred_ratio = RandomMasks(grid[0] * grid[1], mask_ratio), pred_ratio
        self.grad_checkpointing = grad_checkpointing
        kind = dict(mlp_ratio=mlp_ratio, norm_layer=norm_layer)
        self.add_encoder(grid, patch_size, in_chans, embed_dim, depth, num_heads, **kind)

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        position = sincos_pos_embed(decoder_embed_dim, grid)
        self.decoder_pos_embed = nn.Parameter(position, requires_grad=False)
        self.decoder_blocks = new_blocks(
            decoder_embed_dim, decoder_depth, decoder_num_heads, **kind
        )
        self.decoder_norm = norm_layer(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)
        draw_weights(self)
        # The patch embedding is a linear layer that happens to be written as a convolution.
        draw = partial(nn.init.kaiming_uniform_, nonlinearity="linear")  # by the fan-in alone
        draw = draw if unit_patches else nn.init.xavier_uniform_
        draw(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, imgs: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """imgs [B, C, H, W], normalised -> `loss`, which in MAE is `rec`, L_rec; and for the log
        `mean_patch`, that of the data's mean patch, and the class tokens `latent` [B, D]."""
        ids, target = self.draw_masks(imgs, noise), self.targets(imgs)  # [B, 1, L], [B, L, P]
        z, _ = self.forward_encoder(imgs, ids)  # [B, 1 + K, D]
        rec = self.decoded_loss(z, target, ids)
        about = {"mean_patch": self.mean_patch_loss(target), "latent": z[:, 0].detach()}
        return {"loss": rec, "rec": rec} | about

    def embed_patches(self, imgs: Tensor) -> Tensor:
        """Patch and position embedding, without the class token: [B, L, D]."""
        return self.embed_pixels(self.patchify(imgs)) + self.pos_embed[:, 1:]

    def embed_pixels(self, patches: Tensor) -> Tensor:
        """[..., P] -> [..., D], without positions.

        A matrix product: what the convolution of `patch_embed` computes, at less cost.
        """
        proj = self.patch_embed.proj
        weight = proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P], pixels as in patchify
        return F.linear(patches, weight, proj.bias)

    def forward_encoder(
        self, imgs: Tensor, ids: Tensor, change: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed the patches once and encode all N masks in one batch.

        Args:
            change: of the pixels that each mask sees [B·N, K, P]; then its patches are embedded.

        Returns:
            z [B·N, 1 + K, D] and the visible embedded patches x·m [B·N, K, D].
        """
        visible = self.split(ids)[0]
        if change:
            position = take_rows(self.pos_embed[:, 1:].expand(len(ids), -1, -1), visible)
            x_visible = (
                self.embed_pixels(change(take_rows(self.patchify(imgs), visible))) + position
            )
        else:
            x_visible = take_rows(self.embed_patches(imgs), visible)  # [B·N, K, D]
        return self.encode_patches(x_visible), x_visible

    def forward_decoder(self, z: Tensor, ids: Tensor) -> Tensor:
        """Predict the pixels of the masked patches among `ids`, in their order: [B·N, M, P].

        Differs from MAE: the tokens stay in the order of `ids` (attention does not see an order,
        positions are added), and the last MLP and the prediction head run on masked tokens only.

        Args:
            z: [B·N, 1 + K, D]. ids: [B, N, K + M], for each mask its visible patches, then M ≤
                L − K masked ones.
        """
        every = self.decoder_pos_embed[:, 1:].expand(len(ids), -1, -1)  # [B, L, ·]
        position = take_rows(every, ids)  # [B·N, K + M, ·]
        visible, num_visible = self.decoder_embed(z), self.masks.num_visible  # [B·N, 1 + K, ·]
        x = torch.cat(
            [
                visible[:, :1] + self.decoder_pos_embed[:, :1],
                visible[:, 1:] + position[:, :num_visible],
                self.mask_token + position[:, num_visible:],
            ],
            dim=1,
        )  # [B·N, 1 + K + M, ·]
        x = self.run_blocks(self.decoder_blocks, x, num_read=ids.shape[2] - num_visible)
        return self.decoder_pred(self.decoder_norm(x))

    def decoded_loss(self, z: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        """L_rec of the masked patches, or of as many of them as `pred_ratio` says, from z
        [B·N, 1 + K, D] and the targets [B, L, P]."""
        ids = ids[:, :, : self.masks.num_visible + self.num_predicted]  # [B, N, K + M]
        return self.rec_loss(self.forward_decoder(z, ids), target, ids)

    @property
    def num_predicted(self) -> int:
        """M in training: the masked patches per mask that are decoded."""
        return max(1, round(self.pred_ratio * (self.masks.num_patches - self.masks.num_visible)))

    def predict(self, imgs: Tensor, ids: Tensor) -> Tensor:
        """Pixels of the masked patches, [B·N, M, P]; see `MaskedImageModel`."""
        return self.forward_decoder(self.forward_encoder(imgs, ids)[0], ids)

    def encode(self, imgs: Tensor) -> Tensor:
        """Encoder output of the whole, unmasked image: [B, 1 + L, D], class token first."""
        return self.encode_patches(self.embed_patches(imgs))

    def block_shapes(self) -> list[tuple[int, int, int]]:
        """(tokens per masked image, width, depth) of what the backward pass keeps, for memory."""
        encoded = 1 + self.masks.num_visible
        decoded = encoded + self.num_predicted
        return [
            (encoded, self.pos_embed.shape[2], len(self.blocks)),
            (decoded, self.decoder_pos_embed.shape[2], len(self.decoder_blocks)),
        ]


MODELS = {f"mae_{name}": partial(MAEViT, **size) for name, size in SIZES.items()}
globals().update(MODELS)  # mae_vit_base_patch16 and so on are functions of this module
