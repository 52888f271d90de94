"""What masked image models share: a mask, images as patches, and the loss of hidden pixels.

Shapes: B images on this rank, N masks per image, L patches per image, K of them visible to a mask
and M masked ones that are predicted, p patch size, C channels, P = p·p·C pixels of a patch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from util.cluster import distributed
from util.errors import UsageError


class RandomMasks:
    """One random mask for each image, as in MAE.

    Raises:
        UsageError: a ratio that cannot be used; the line names the flag.
    """

    num_masks = 1  # N

    def __init__(self, num_patches: int, mask_ratio: float):
        if not 0 < mask_ratio < 1:
            raise UsageError(f"--mask_ratio {mask_ratio} is not between 0 and 1: MAE uses 0.75")
        self.num_patches = num_patches
        self.num_visible = int(num_patches * (1 - mask_ratio) + 1e-6)  # 100 · (1 − 0.9) is 9.999…
        if self.num_visible < 1:
            raise UsageError(
                f"--mask_ratio {mask_ratio} leaves none of {num_patches} patches visible: "
                "lower it, or use a larger --input_size or a smaller patch"
            )

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        """The shape of the uniform noise from which the masks of a batch follow."""
        return (batch_size, self.num_patches)

    def order(self, noise: Tensor) -> Tensor:
        """Patches in an order for each mask, [B, N, L]: a mask sees the first K of a row."""
        return noise.argsort(dim=1).unsqueeze(1)


class DrawnMask(RandomMasks):
    """One mask, the same for all images; is_masked [L] says which patches it hides."""

    def __init__(self, is_masked: Tensor):
        self.num_patches, self.num_visible = len(is_masked), int((~is_masked).sum())
        self.is_masked = is_masked

    def order(self, noise: Tensor) -> Tensor:
        hidden_last = self.is_masked.float().expand_as(noise).to(noise.device)
        return hidden_last.argsort(dim=1, stable=True).unsqueeze(1)


def take_rows(x: Tensor, ids: Tensor) -> Tensor:
    """Rows of x [B, L, D] at ids [B, N, M], all masks in one batch: [B·N, M, D]."""
    index = ids.flatten(1).unsqueeze(-1).expand(-1, -1, x.shape[2])  # [B, N·M, D]
    return x.gather(1, index).view(-1, ids.shape[2], x.shape[2])


def full_precision(x: Tensor) -> Tensor:
    """x in fp32 where it is fp16 or bf16; fp32 and fp64 stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class MeanPatch(nn.Module):
    """The mean target at each place over the data: the best prediction that sees nothing of an
    image. A reconstruction loss that is not below its own has learnt nothing of images.

    The first MAX_UPDATES steps of a run count; then it stays. Saved by the run.
    """

    MAX_UPDATES = 1000

    def __init__(self, num_patches: int, num_pixels: int):
        super().__init__()
        for name in ("mean", "pending"):
            self.register_buffer(name, torch.zeros(num_patches, num_pixels), False)
        for name in ("num_pending", "num_updates"):
            self.register_buffer(name, torch.tensor(0.0), False)
        self.is_learning, self.has_begun = True, False

    def forward(self, target: Tensor) -> Tensor:
        """The mean patches [L, P]; in training the targets [B, L, P] are counted for `update`."""
        of_batch = target.detach().mean(0)
        if not self.has_begun:  # then it is the global batch's
            of_batch = distributed.reduce_mean(of_batch)
        if self.training and self.is_learning:
            self.pending.add_(of_batch)
            self.num_pending.add_(1)
        return torch.where(self.num_updates > 0, self.mean.to(target), of_batch)

    @torch.no_grad()
    def update(self) -> None:
        """Take in what an optimiser step's micro-batches have counted, on all ranks."""
        self.has_begun = True
        if not self.is_learning:
            return
        of_step = distributed.reduce_mean(self.pending / self.num_pending)
        is_counted = self.num_updates < self.MAX_UPDATES
        self.num_updates += is_counted
        self.mean.lerp_(of_step, is_counted / self.num_updates)
        self.pending.zero_()
        self.num_pending.zero_()

    def settle(self) -> None:
        """Exchange nothing more after MAX_UPDATES, nor another first mean after a checkpoint's; for
        log steps, since this waits for the device."""
        self.has_begun = bool(self.num_updates > 0)
        self.is_learning = float(self.num_updates) < self.MAX_UPDATES


class MaskedImageModel(nn.Module):
    """Images as patches, and the pixels of those that a mask hides: what MAE and SimMIM share.

    A subclass has `masks`, and `predict(imgs, ids)`: the pixels of the masked patches among `ids`
    [B, N, L], in their order, [B·N, M, P].

    Args:
        grid: patches in (height, width). patch_size: p. in_chans: C.
        norm_pix_loss: the pixels of each target patch are normalised.
    """

    masks: RandomMasks
    pixel_loss = staticmethod(F.mse_loss)  # of L_rec [Eq. 1]

    def __init__(
        self, grid: tuple[int, int], patch_size: int, in_chans: int, norm_pix_loss: bool
    ):  # fmt: skip
        super().__init__()
        self.grid, self.patch_size, self.norm_pix_loss = grid, patch_size, norm_pix_loss
        self.mean_patch = MeanPatch(grid[0] * grid[1], patch_size**2 * in_chans)

    def draw_masks(self, imgs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Patch order for each mask, [B, N, L], the visible ones first.

        Args:
            noise: uniform, of `masks.noise_shape(B)`; None draws it.
        """
        if noise is None:
            noise = torch.rand(self.masks.noise_shape(len(imgs)), device=imgs.device)
        return self.masks.order(noise)

    def split(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Patch order [B, N, K + M] -> visible patches [B, N, K], masked ones [B, N, M]."""
        patches_per_unit = self.grid[0] * self.grid[1] // self.masks.num_patches
        num_visible = self.masks.num_visible * patches_per_unit
        return ids[:, :, :num_visible], ids[:, :, num_visible:]

    def rec_loss(self, pred: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        """L_rec of the pixels [B·N, M, P] that are predicted for the masked patches among `ids`
        [B, N, K + M], by the targets [B, L, P] [Eq. 1]."""
        return self.pixel_loss(full_precision(pred), take_rows(target, self.split(ids)[1]))

    def mean_patch_loss(self, target: Tensor) -> Tensor:
        """L_rec of predicting the data's mean patch at each place, for the targets [B, L, P]."""
        return self.pixel_loss(self.mean_patch(target).expand_as(target), target)

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
        ids = self.draw_masks(imgs, noise)
        pred = full_precision(self.predict(imgs, ids))
        ids_visible, ids_masked = self.split(ids)
        patches = self.patchify(full_precision(imgs))  # [B, L, P]
        if self.norm_pix_loss:
            source = ids_masked if patch_statistics == "true" else ids_visible
            var, mean = torch.var_mean(take_rows(patches, source), dim=-1, keepdim=True)
            if patch_statistics == "visible":
                var, mean = var.mean(1, keepdim=True), mean.mean(1, keepdim=True)
            pred = pred * (var + 1e-6).sqrt() + mean
        full = patches.repeat_interleave(self.masks.num_masks, 0)  # [B·N, L, P]
        ids_masked = ids_masked.flatten(0, 1)  # [B·N, L − K]
        full = full.scatter(1, ids_masked.unsqueeze(-1).expand_as(pred), pred)
        is_masked = torch.zeros(full.shape[:2], dtype=torch.bool, device=imgs.device)
        return is_masked.scatter(1, ids_masked, True), self.unpatchify(full)
