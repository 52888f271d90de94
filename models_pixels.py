"""Pixels of patches: what a masked image model predicts, and the pictures it makes of that.

Shapes as in `models_mimae`; P = p·p·C pixels of a patch.
"""

import torch
from torch import Tensor, nn


class PixelPrediction(nn.Module):
    """The pixel side of a masked image model, beside `MutualInformationModel`.

    Args:
        grid: patches in (height, width), all of them the same size.
        patch_size: p. norm_pix_loss: normalise the pixels of each target patch.
        num_units: what a mask hides at once is a unit, of one patch or more; the number of units.
        mutual_information: the arguments of `MutualInformationModel`, `num_masks` and on.
    """

    def __init__(
        self, grid: tuple[int, int], patch_size: int, norm_pix_loss: bool,
        num_units: int | None = None, **mutual_information,
    ):  # fmt: skip
        super().__init__(num_patches=num_units or grid[0] * grid[1], **mutual_information)
        self.grid, self.patch_size, self.norm_pix_loss = grid, patch_size, norm_pix_loss

    def predict(self, imgs: Tensor, ids: Tensor) -> Tensor:
        """Pixels of the masked patches: [B·N, M, P], in the order of `ids` [B, N, K + M]."""
        raise NotImplementedError

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Patch order [B, N, K + M] -> visible patches [B, N, K], masked ones [B, N, M]."""
        patches_per_unit = self.grid[0] * self.grid[1] // self.num_patches
        num_visible = self.num_visible * patches_per_unit
        return ids[:, :, :num_visible], ids[:, :, num_visible:]

    def masked_targets(self, imgs: Tensor, ids: Tensor) -> Tensor:
        """What is to be predicted of the masked patches among `ids`: [B·N, M, P]."""
        return take_rows(self.targets(imgs), self.split(ids)[1])

    def targets(self, imgs: Tensor) -> Tensor:
        """What is predicted: pixels per patch, normalised with `norm_pix_loss`; [B, L, P]."""
        target = self.patchify(full_precision(imgs))
        if self.norm_pix_loss:
            var, mean = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased, as in MAE
            target = (target - mean) / (var + 1e-6).sqrt()
        return target

    def patchify(self, imgs: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, P], pixels in the order (row, column, channel).

        Raises:
            ValueError: images of another size than the model's.
        """
        expected = tuple(side * self.patch_size for side in self.grid)
        if imgs.shape[2:] != expected:
            raise ValueError(f"images of {tuple(imgs.shape[2:])} pixels for a model of {expected}")
        x = imgs.unflatten(3, (self.grid[1], -1)).unflatten(2, (self.grid[0], -1))
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [B, C, h, p, w, p] -> ...

    def unpatchify(self, patches: Tensor) -> Tensor:
        """[B, L, P] -> [B, C, H, W], the inverse of `patchify`."""
        p = self.patch_size
        x = patches.unflatten(1, self.grid).unflatten(3, (p, p, -1))  # [B, h, w, p, p, C]
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    @torch.no_grad()
    def reconstruct(
        self, imgs: Tensor, noise: Tensor | None = None, patch_statistics: str = "true"
    ) -> tuple[Tensor, Tensor]:
        """What each mask sees and what is predicted from it.

        Args:
            patch_statistics: with `norm_pix_loss`, what de-normalises a predicted patch: its own
                (`true`) mean and variance, or their means over the `visible` patches.

        Returns:
            is_masked [B·N, L] and reconstructions [B·N, C, H, W], visible patches as they are.
        """
        ids = self.permutations(imgs, noise)
        pred = full_precision(self.predict(imgs, ids))
        ids_visible, ids_masked = self.split(ids)
        patches = self.patchify(full_precision(imgs))  # [B, L, P]
        if self.norm_pix_loss:
            source = ids_masked if patch_statistics == "true" else ids_visible
            var, mean = torch.var_mean(take_rows(patches, source), dim=-1, keepdim=True)
            if patch_statistics == "visible":
                var, mean = var.mean(1, keepdim=True), mean.mean(1, keepdim=True)
            pred = pred * (var + 1e-6).sqrt() + mean
        full = patches.repeat_interleave(self.num_masks, 0)  # [B·N, L, P]
        ids_masked = ids_masked.flatten(0, 1)  # [B·N, L − K]
        full = full.scatter(1, ids_masked.unsqueeze(-1).expand_as(pred), pred)
        is_masked = torch.zeros(full.shape[:2], dtype=torch.bool, device=imgs.device)
        return is_masked.scatter(1, ids_masked, True), self.unpatchify(full)


def take_rows(x: Tensor, ids: Tensor) -> Tensor:
    """Rows of x [B, L, D] at ids [B, N, M], all masks in one batch: [B·N, M, D]."""
    index = ids.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[2])  # [B, N·M, D]
    return x.gather(1, index).view(-1, ids.shape[2], x.shape[2])


def full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
