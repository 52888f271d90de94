"""SimMIM and MI-SimMIM: an encoder that sees mask tokens, a linear head, L1 on masked pixels.

With one mask and `lambda_max = lambda_min = 0` the model is SimMIM; the masks, the losses of the
mutual information and the total are those of `models_mimae`.

Shapes: B images on this rank, N masks per image, U mask units per image, h x w patch tokens of
width d at the encoder's input, L cells of the final map of width D, K visible cells per mask,
C channels, P = C·(pixels of a cell).
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.swin import block_shapes, build_swin, cell_size
from encoders.vit import SIZES
from models_mae import ViTEncoder
from models_masked import MaskedImageModel, take_rows
from models_mimae import Losses, MutualInformation, OrthogonalMasks, Rows, take_mi_options
from util.checks import image_size
from util.errors import UsageError
from util.flags.defaults import MISIMMIM, SIMMIM


class SimMIM(MaskedImageModel):
    """SimMIM, with N masks for each image and the mutual information of their latents.

    A subclass has the encoder: `embed(imgs)`, patch tokens before masking, [B, C, H, W] ->
    [B, h, w, d], and `encode_tokens(x)`, those tokens [rows, h, w, d] -> prefix tokens and cells
    [rows, num_prefix + L, D]. It calls `add_objective` last.

    A mask hides whole units of one cell (Swin) or more (ViT). `grid` and `patch_size` are the
    cells', whose pixels are predicted.

    Args:
        img_size: pixels, a number or (height, width), divisible by `mask_unit`.
        mask_unit, cell: pixels; a unit is a whole number of cells wide.
        dim: D. embed_dim: d.
        num_masks, mask_ratio, mask_type: of `OrthogonalMasks`.
        norm_pix_loss: normalise the pixels of each target cell.

    Raises:
        UsageError: sizes that are no multiples of the mask unit; the line names the flag.
    """

    pixel_loss = staticmethod(F.l1_loss)  # in place of Eq. 1's
    num_prefix = 0  # tokens of the encoder's output that stand before the cells
    outside_gradient_norm = ("approximation.",)  # moved by L_apx alone

    def __init__(
        self, img_size: int | Sequence[int], in_chans: int, mask_unit: int, cell: int, dim: int,
        embed_dim: int, num_masks: int = 4, mask_ratio: float = 0.6,
        mask_type: str = "orthogonal", norm_pix_loss: bool = False,
    ):  # fmt: skip
        height, width = image_size(img_size, mask_unit, "the mask unit of the model")
        super().__init__((height // cell, width // cell), cell, in_chans, norm_pix_loss)
        num_units = (height // mask_unit) * (width // mask_unit)
        self.masks = OrthogonalMasks(num_units, num_masks, mask_ratio, mask_type)
        self.img_size, self.mask_unit = (height, width), mask_unit
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        # 1×1 convolution and PixelShuffle, which on a list of cells is a linear layer.
        self.decoder_pred = nn.Linear(dim, in_chans * cell**2)

    def add_objective(self, dim: int, embed_dim: int, options: dict[str, object]) -> None:
        """Add the objective with these options: last, so that its networks are drawn last."""
        self.mi = MutualInformation(dim, self.masks.num_masks, embed_dim, **options)
        self.mi.give_to(self)
        if self.mi.latent_pool == "cls" and not self.num_prefix:
            raise UsageError("--latent_pool cls: a Swin has no class token, use --latent_pool mean")

    def no_weight_decay(self) -> set[str]:
        # SimMIM decays the tables of position biases here, and not in fine-tuning.
        return {"mask_token"}

    def forward(self, imgs: Tensor, noise: Tensor | None = None) -> Losses:
        """As `models_mimae.MaskedAutoencoderViT.forward`, with an L1 for Eq. 1."""
        ids, target = self.draw_masks(imgs, noise), self.targets(imgs)  # [B, N, L], [B, L, P]
        z, x = self.forward_encoder(imgs, ids)  # [B·N, num_prefix + L, D], [B, L, d]
        rec = self.rec_loss(self.forward_decoder(z, ids), target, ids)
        mean_patch = self.mean_patch_loss(target)
        return self.mi.all_losses(rec, mean_patch, self.visible_rows(z, x, ids))

    def visible_rows(self, z: Tensor, x: Tensor, ids: Tensor) -> Rows:
        """The rows of visible cells alone; our choice: the cells of mask tokens are left out."""
        ids_visible, _ = self.split(ids)
        z_visible = _rows(z[:, self.num_prefix :], ids_visible)  # [B·N, K, D]
        return self.mi.rows(take_rows(x, ids_visible), z_visible, z[:, 0])

    def mi_rows(self, imgs: Tensor, noise: Tensor) -> Rows:
        """What the losses of mutual information compare in a batch, without predicting pixels."""
        ids = self.draw_masks(imgs, noise)
        return self.visible_rows(*self.forward_encoder(imgs, ids), ids)

    def draw_masks(self, imgs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Cell order for each mask, [B, N, L], unit by unit; the first units' cells are visible."""
        units = super().draw_masks(imgs, noise)  # [B, N, U]
        across = self.mask_unit // self.patch_size  # cells that a unit is wide
        height, width = (side // across for side in self.grid)
        cells = torch.arange(self.grid[0] * self.grid[1], device=units.device)
        cells = cells.view(height, across, width, across).transpose(1, 2)  # [·, ·, across, across]
        return cells.reshape(height * width, -1)[units].flatten(2)  # [B, N, U, across²] -> ...

    def forward_encoder(self, imgs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the patches once and encode all N masks, with mask tokens, in one batch.

        Returns:
            z [B·N, num_prefix + L, D], and x [B, L, d], the mean embedded patch of each cell.
        """
        tokens = self.embed(imgs)  # [B, h, w, d]
        is_masked = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        is_masked = is_masked.scatter(2, self.split(ids)[1], True).unflatten(2, self.grid)
        across = tokens.shape[1] // self.grid[0]  # patches that a cell is wide
        is_masked = is_masked.repeat_interleave(across, 2).repeat_interleave(across, 3)
        mask_token = self.mask_token.to(tokens.dtype)
        masked = torch.where(is_masked.unsqueeze(-1), mask_token, tokens.unsqueeze(1))
        patches = tokens.unflatten(2, (-1, across)).unflatten(1, (-1, across))
        x = patches.mean((2, 4)).flatten(1, 2)  # [B, h', across, w', across, d] -> [B, L, d]
        return self.encode_tokens(masked.flatten(0, 1)), x  # masked: [B, N, h, w, d]

    def forward_decoder(self, z: Tensor, ids: Tensor) -> Tensor:
        """Predict the pixels of the masked cells: [B·N, L − K, P], in the order of `ids`."""
        return self.decoder_pred(_rows(z[:, self.num_prefix :], self.split(ids)[1]))

    def predict(self, imgs: Tensor, ids: Tensor) -> Tensor:
        return self.forward_decoder(self.forward_encoder(imgs, ids)[0], ids)

    def encode(self, imgs: Tensor) -> Tensor:
        """Output for the whole, unmasked image: [B, 1 + L, D], first the class token or, where
        there is none, the mean of the cells."""
        z = self.encode_tokens(self.embed(imgs))
        return z if self.num_prefix else torch.cat([z.mean(1, keepdim=True), z], dim=1)


class SimMIMSwin(SimMIM):
    """SimMIM with a Swin; a mask unit is a cell of the final map.

    Args:
        encoder: the name of its size in `encoders.swin.SIZES`.
        simmim: the arguments of `SimMIM` and of `MutualInformation`.
    """

    def __init__(
        self, encoder: str, img_size: int | Sequence[int] = 192, in_chans: int = 3,
        grad_checkpointing: bool = False, **simmim,
    ):  # fmt: skip
        cell = cell_size(encoder)
        img_size = image_size(img_size, cell, "the mask unit of the model")
        swin = build_swin(encoder, 0, img_size, in_chans, 0.0, grad_checkpointing)
        widths, mi_options = (swin.num_features, swin.embed_dim), take_mi_options(simmim)
        super().__init__(img_size, in_chans, cell, cell, *widths, **simmim)
        self.patch_embed, self.layers, self.norm = swin.patch_embed, swin.layers, swin.norm
        self.add_objective(*widths, mi_options)

    def embed(self, imgs: Tensor) -> Tensor:
        return self.patch_embed(imgs)

    def encode_tokens(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x)).flatten(1, 2)  # [rows, h', w', D] -> [rows, L, D]

    def block_shapes(self) -> list[tuple[int, int, int]]:
        """(tokens per masked image, width, depth) of what the backward pass keeps, for memory."""
        return block_shapes(self.patch_embed, self.layers)


class SimMIMViT(ViTEncoder, SimMIM):
    """SimMIM with a ViT as `encoders.vit` has it; a cell is a patch, a unit 32 pixels.

    Differs from SimMIM, whose ViT has relative positions and layer scale: its own checkpoints do
    not fit, MAE's do.
    """

    num_prefix = 1

    def __init__(
        self, img_size: int | Sequence[int] = 224, patch_size: int = 16, in_chans: int = 3,
        embed_dim: int = 768, depth: int = 12, num_heads: int = 12, mask_unit: int = 32,
        grad_checkpointing: bool = False, **simmim,
    ):  # fmt: skip
        mi_options = take_mi_options(simmim)
        super().__init__(img_size, in_chans, mask_unit, patch_size, embed_dim, embed_dim, **simmim)
        self.grad_checkpointing = grad_checkpointing
        self.add_encoder(self.grid, patch_size, in_chans, embed_dim, depth, num_heads)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.add_objective(embed_dim, embed_dim, mi_options)

    def embed(self, imgs: Tensor) -> Tensor:
        return self.patch_embed(imgs).unflatten(1, self.grid)

    def encode_tokens(self, x: Tensor) -> Tensor:
        """Positions are added after masking, so that a mask token knows its place."""
        return self.encode_patches(x.flatten(1, 2) + self.pos_embed[:, 1:])

    def no_weight_decay(self) -> set[str]:
        return {"mask_token", "cls_token"}

    def block_shapes(self) -> list[tuple[int, int, int]]:
        """(tokens per masked image, width, depth) of what the backward pass keeps, for memory."""
        return [(1 + self.grid[0] * self.grid[1], self.pos_embed.shape[2], len(self.blocks))]


def _rows(x: Tensor, ids: Tensor) -> Tensor:
    """Cells of each mask's own output, x [B·N, L, D] at ids [B, N, M]: [B·N, M, D]."""
    return take_rows(x, ids.flatten(0, 1).unsqueeze(1))


# ----------------------------------------------------------------------------------------- models

_ENCODERS = {
    "swin_mini_patch2": partial(SimMIMSwin, "swin_mini_patch2"),
    "swin_tiny": partial(SimMIMSwin, "swin_tiny"),
    "swin_small": partial(SimMIMSwin, "swin_small"),
    "swin_base": partial(SimMIMSwin, "swin_base"),
    "vit_base_patch16": partial(SimMIMViT, **SIZES["vit_base_patch16"]),
}
MODELS = {
    f"{method}_{name}": partial(model, **defaults)
    for method, defaults in (("simmim", SIMMIM), ("misimmim", MISIMMIM))
    for name, model in _ENCODERS.items()
}
