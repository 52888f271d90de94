"""MI-MAE in one file, from Eq. 1 to Eq. 11: masks, reconstruction, InfoNCE, CLUB, and their sum.

*Learning Mask Invariant Mutual Information for Masked Image Modeling*, ICLR 2025. With one mask
and `lambda_max = lambda_min = 0` the model is MAE: same parameters, initialisation and loss.

Shapes: B images on this rank, N masks per image, L patches per image, K visible patches per mask,
D encoder width, p patch size, C channels, P = p·p·C pixels of a patch, W ranks.
Losses are means over the *global* batch: averaged over the ranks, the values and the gradients of
`forward` are those of one process that holds all W·B images.
"""

import math
from functools import partial
from typing import TypedDict

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from models_mae import SIZES, MAEViT, draw_weights
from models_pixels import full_precision
from util.checks import check_one_of
from util.cluster import distributed
from util.errors import UsageError
from util.training.exact_accumulation import StepMI
from util.training.uniformity import uniformity

# ---------------------------------------------------------------- orthogonal masks [Section 4.2]


def orthogonal_permutations(noise: Tensor, num_masks: int, num_visible: int) -> Tensor:
    """Patch order for each mask, from one random permutation per image.

    Mask k sees the permutation's positions k·K … k·K + K − 1, modulo L. So the visible sets are
    disjoint where N·K ≤ L and overlap as evenly as possible elsewhere.

    Args:
        noise: [B, L]; its argsort is the permutation, and row 0 of the result (MAE's masks).
        num_masks: N. num_visible: K.

    Returns:
        [B, N, L] patch indices; the first K of row k are what mask k sees, the rest is masked.
    """
    permutation = noise.argsort(dim=1)  # [B, L]
    return torch.stack([permutation.roll(-k * num_visible, 1) for k in range(num_masks)], dim=1)


def resolve_masking(num_patches: int, num_masks: int, mask_ratio: float) -> tuple[int, int]:
    """(N, K) for a grid of L patches; `num_masks = 0` is complete masking [Fig. 2].

    Raises:
        UsageError: where a ratio or a number of masks cannot be used; the line names the flag.
    """
    if not 0 < mask_ratio < 1:
        raise UsageError(f"--mask_ratio {mask_ratio} is not between 0 and 1: MAE uses 0.75")
    num_visible = int(num_patches * (1 - mask_ratio) + 1e-6)  # 100 · (1 − 0.9) is 9.999…
    if num_visible < 1:
        raise UsageError(
            f"--mask_ratio {mask_ratio} leaves none of {num_patches} patches visible: "
            "lower it, or use a larger --input_size or a smaller patch"
        )
    if num_masks < 0:
        raise UsageError(f"--num_masks {num_masks} is negative: use 0 (complete masking) or more")
    return num_masks or max(2, round(1 / (1 - mask_ratio))), num_visible


# ------------------------------------------------------------------------- reconstruction [Eq. 1]


def reconstruction_loss(pred: Tensor, target: Tensor) -> Tensor:
    """L_rec: mean squared error of the masked patches' pixels, [B·N, M, P] each [Eq. 1]."""
    return F.mse_loss(full_precision(pred), target)


# ---------------------------------------------------------------------- MI maximisation [Eq. 7, 8]


def latent_similarities(latents: Tensor, temperature: float) -> Tensor:
    """s_ij: cosine similarities / τ to the latents of all ranks; a row's own (j = i) is −inf.

    latents [B·N, D] -> [B·N, W·B·N]; columns are rank by rank.
    """
    latents = F.normalize(full_precision(latents), dim=1)
    similarities = latents @ distributed.gather_with_grad(latents).T / temperature
    row = torch.arange(len(latents), device=latents.device)
    similarities[row, row + distributed.rank() * len(latents)] = -math.inf
    return similarities


def ids_positives(similarities: Tensor, num_masks: int) -> Tensor:
    """Columns of the other masks of each row's image: [B·N, N − 1]."""
    row = torch.arange(len(similarities), device=similarities.device)[:, None]
    shift = torch.arange(1, num_masks, device=similarities.device)
    return row - row % num_masks + (row + shift) % num_masks + distributed.rank() * len(row)


def info_nce(latents: Tensor, num_masks: int, temperature: float) -> Tensor:
    """L_max, the InfoNCE loss between the masks of an image, in nats [Eq. 7 and 8].

    −log(exp s_ik / Σ_{j≠i} exp s_ij), averaged over all ordered pairs (i, k) of one image; the
    sum runs over all other latents of the global batch, the other positives included. For N = 2
    it is SimCLR's NT-Xent.

    Args:
        latents: [B·N, D], rows of one image adjacent. num_masks: N ≥ 2. temperature: τ.
    """
    return _info_nce(latent_similarities(latents, temperature), num_masks)


def _info_nce(similarities: Tensor, num_masks: int) -> Tensor:
    positive = similarities.gather(1, ids_positives(similarities, num_masks)).mean(1)
    return (similarities.logsumexp(1) - positive).mean()


def info_nce_accuracy(similarities: Tensor, num_masks: int) -> Tensor:
    """Share of rows whose nearest other latent is another mask of the same image."""
    is_nearest = similarities.argmax(1, keepdim=True) == ids_positives(similarities, num_masks)
    return is_nearest.any(1).float().mean()


# --------------------------------------------------------------------- MI minimisation [Eq. 9, 10]


class ApproximationNetwork(nn.Module):
    """q_φ(z | x·m), a diagonal Gaussian [Section 5.4]: x [rows, D] -> mean, logvar [rows, D].

    Where the embedded patches are narrower than the latents (Swin), x is [rows, input_dim]. Our
    choice: the ReLU output is the log-variance, so σ² ≥ 1 and the precision is bounded. Read
    as a variance with a small floor, λ2 = 10 made a small run collapse.
    """

    def __init__(self, dim: int, input_dim: int | None = None):
        super().__init__()
        self.mean = self._branch(input_dim or dim, dim, nn.LeakyReLU())
        self.logvar = self._branch(input_dim or dim, dim, nn.ReLU())

    @staticmethod
    def _branch(input_dim: int, dim: int, activation: nn.Module) -> nn.Sequential:
        encode = [nn.Linear(input_dim, dim), nn.GELU(), nn.Linear(dim, dim)]
        return nn.Sequential(*encode, nn.Linear(dim, dim), activation)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(x), self.logvar(x)


def gaussian_nll(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """L_apx, −log q(z | x) in nats per dimension, averaged over rows and dimensions [Eq. 9]."""
    squared = (z - mean) ** 2 * (-logvar).exp()
    return 0.5 * (squared + logvar + math.log(2 * math.pi)).mean()


def club_upper_bound(z: Tensor, mean: Tensor, logvar: Tensor, group: int | None) -> Tensor:
    """L_min, the CLUB bound of the mutual information, in nats per dimension [Eq. 10].

    mean_j [ log q(z_j | x_j) − mean_k log q(z_k | x_j) ], k over the rows of j's group. Among the
    masks of one image it takes out of a latent what is peculiar to its mask, and leaves what
    tells images apart. For a diagonal Gaussian the inner mean needs two moments only,
    mean_k (z_k − μ_j)² = Var z + (E z − μ_j)², so the exact bound costs O(rows · D). The
    log-variances cancel.

    Args:
        z, mean, logvar: [rows, D]; mean and logvar of q(· | x_j) in row j.
        group: so many adjacent rows are each other's negatives, an image's; None: all rows of the
            global batch are, for which the ranks exchange 2·D numbers.
    """
    if group is None:
        z_mean = distributed.reduce_mean_with_grad(z.mean(0))  # [D]
        z_var = distributed.reduce_mean_with_grad(((z - z_mean) ** 2).mean(0))  # [D]
    else:
        z, mean, logvar = (t.unflatten(0, (-1, group)) for t in (z, mean, logvar))
        z_mean = z.mean(1, keepdim=True)  # [rows / group, 1, D]
        z_var = ((z - z_mean) ** 2).mean(1, keepdim=True)
    positive = (z - mean) ** 2
    negative = z_var + (z_mean - mean) ** 2
    return 0.5 * ((negative - positive) * (-logvar).exp()).mean()


def follow_above_zero(bound: Tensor) -> Tensor:
    """`bound`, without its gradient where its mean over the global batch is below zero.

    Our choice. Mutual information is not negative: there φ lags behind the encoder and Eq. 10 is
    no bound [Appendix A.4]. Followed on, L_min alone turned an image's latents from each other.
    """
    return torch.where(distributed.reduce_mean(bound) > 0, bound, bound.detach())


# ------------------------------------------------------------------------- Assumption 3 [Eq. 5]


class ReconstructionGate(nn.Module):
    """Assumption 3: the MI losses count only once L_rec has fallen below ε.

    Our choice: a running mean over all ranks is tested; once met it stays met. Saved by the run.
    """

    decay = 0.95

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold, self.is_watched = threshold, threshold < math.inf
        self.register_buffer("is_open", torch.tensor(float(not self.is_watched)), False)
        self.register_buffer("rec_mean", torch.tensor(0.0), False)
        self.register_buffer("num_updates", torch.tensor(0.0), False)

    @torch.no_grad()
    def update(self, rec: Tensor) -> None:
        """Count an optimiser step's mean L_rec on this rank."""
        if not self.is_watched:
            return
        rec = distributed.reduce_mean(rec).to(self.rec_mean.dtype)
        self.num_updates += 1
        self.rec_mean.lerp_(rec, 1 - self.decay)
        unbiased = self.rec_mean / (1 - self.decay**self.num_updates)
        self.is_open.copy_(torch.maximum(self.is_open, (unbiased < self.threshold).float()))

    def settle(self) -> None:
        """Ranks exchange nothing more once it is open; for log steps, since the device waits."""
        self.is_watched = self.is_watched and not bool(self.is_open)


# ----------------------------------------------------------------------- the losses' sum [Eq. 11]


class Losses(TypedDict):
    """What `forward` returns: scalars, zero where they are not computed, and the latents."""

    loss: Tensor  # the sum
    rec: Tensor  # L_rec
    max_mi: Tensor  # L_max
    min_mi: Tensor  # L_min
    apx: Tensor  # L_apx
    info_nce_accuracy: Tensor  # for the log
    latent: Tensor  # g [B·N, ·], detached, for the log


class MutualInformationModel(nn.Module):
    """A masked image model with the loss of MI-MAE [Eq. 11]; MAE and SimMIM build on it.

    Args:
        num_patches: L, what a mask can hide (patches; mask units for SimMIM).
        num_masks: N, masks per image; 0 is complete masking. mask_ratio: masked share of L.
        mask_type: `orthogonal` or `independent`.
        lambda_rec, lambda_max, lambda_min: weights of L_rec, L_max and L_min. temperature: τ.
        latent_pool: the latent g is the class token (`cls`) or the mean patch token (`mean`) of z.
        mi_head: InfoNCE compares g (`none`), or a projection of it (`mlp`), dropped afterwards.
        club_level: a row of CLUB is a masked `image` or a visible `token`; club_negatives: it is
            compared with the rows of its `image` or of the `batch`.
        club_floor: follow L_min only where the batch's bound is above zero.
        train_approximation: add L_apx; without it φ keeps its random weights [Table 3a, d].
        mi_start_loss: ε of Assumption 3; infinite: the MI losses count from the first step.
        lambda_uniformity: weight of U-MAE's term, from the first step on; for studies.

    Raises:
        UsageError: for ratios and names that cannot be used; the line names the flag.
    """

    separate = ("approximation.",)  # moved by L_apx alone, so no part of the gradient's norm

    def __init__(
        self, num_patches: int, num_masks: int = 4, mask_ratio: float = 0.75,
        mask_type: str = "orthogonal", lambda_rec: float = 1.0, lambda_max: float = 1.0,
        lambda_min: float = 10.0, temperature: float = 0.07, latent_pool: str = "cls",
        mi_head: str = "none", club_level: str = "image", club_negatives: str = "image",
        train_approximation: bool = True, mi_start_loss: float = math.inf,
        lambda_uniformity: float = 0.0, club_floor: bool = True,
    ):  # fmt: skip
        super().__init__()
        check_one_of("--mask_type", mask_type, ("orthogonal", "independent"))
        check_one_of("--latent_pool", latent_pool, ("cls", "mean"))
        check_one_of("--mi_head", mi_head, ("none", "mlp"))
        check_one_of("--club_level", club_level, ("image", "token"))
        check_one_of("--club_negatives", club_negatives, ("image", "batch"))
        if not temperature > 0:  # nor NaN
            raise UsageError(f"--temperature {temperature} is not positive: the paper has 0.07")
        self.num_patches, self.mask_type, self.temperature = num_patches, mask_type, temperature
        self.num_masks, self.num_visible = resolve_masking(num_patches, num_masks, mask_ratio)
        needs_others = lambda_max or (lambda_min and club_level == club_negatives == "image")
        if self.num_masks == 1 and needs_others:
            raise UsageError(
                "--num_masks 1 has no other mask for --lambda_max and --lambda_min to compare "
                "with: set both to 0, or use more masks"
            )
        self.latent_pool, self.club_level = latent_pool, club_level
        self.club_negatives, self.mi_head_type = club_negatives, mi_head
        self.lambda_rec, self.lambda_max, self.lambda_min = lambda_rec, lambda_max, lambda_min
        self.lambda_uniformity, self.club_floor = lambda_uniformity, club_floor
        self.train_approximation, uses_mi = train_approximation, lambda_max > 0 or lambda_min > 0
        self.gate = ReconstructionGate(mi_start_loss if uses_mi else math.inf)

    def add_mi_networks(self, dim: int, input_dim: int | None = None) -> None:
        """φ and the projection, where they are used; without them the parameters are MAE's.

        Built last and drawn apart, so all models of one seed start from the same encoder.
        """
        self.approximation = ApproximationNetwork(dim, input_dim) if self.lambda_min > 0 else None
        if self.approximation is not None:
            self.approximation.requires_grad_(self.train_approximation)
        has_head = self.mi_head_type == "mlp" and self.lambda_max > 0
        self.mi_head = Mlp(dim, 2 * dim, 256) if has_head else None
        generator = torch.Generator().manual_seed(torch.initial_seed())
        for network in filter(None, (self.approximation, self.mi_head)):
            draw_weights(network, generator)

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of the noise that `forward` needs: [B, L], or [B, N, L] for independent masks."""
        masks = () if self.mask_type == "orthogonal" else (self.num_masks,)
        return (batch_size, *masks, self.num_patches)

    def permutations(self, imgs: Tensor, noise: Tensor | None) -> Tensor:
        """Patch order for each mask, [B, N, L]: the first K of a row are visible."""
        if noise is None:
            noise = torch.rand(self.noise_shape(len(imgs)), device=imgs.device)
        if self.mask_type == "independent":  # [Table 3c]
            return noise.argsort(dim=2)
        return orthogonal_permutations(noise, self.num_masks, self.num_visible)

    def mi_rows(self, x: Tensor, z: Tensor, cls_token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What InfoNCE compares, g [B·N, ·], and the rows x and z [·, D] of q(z | x).

        Args:
            x, z: visible embedded patches x·m and their outputs, [B·N, K, D]. cls_token: [B·N, D].
        """
        latent = full_precision(cls_token if self.latent_pool == "cls" else z.mean(1))
        g = self.mi_head(latent) if self.mi_head else latent
        if self.club_level == "image":
            return g, full_precision(x.mean(1)), latent
        return g, full_precision(x.flatten(0, 1)), full_precision(z.flatten(0, 1))

    def mi_losses(self, g: Tensor, x: Tensor, z: Tensor) -> dict[str, Tensor]:
        """L_max, which moves the encoder, L_min, which moves it through z alone, and L_apx, which
        moves φ alone, of what `mi_rows` gives; a term of weight 0 is for the log only."""
        names = ("max_mi", "min_mi", "apx", "info_nce_accuracy")
        losses = dict.fromkeys(names, z.new_zeros(()))
        with torch.autocast(x.device.type, enabled=False):  # in full precision
            if self.num_masks > 1:
                with torch.set_grad_enabled(self.lambda_max > 0 and torch.is_grad_enabled()):
                    similarities = latent_similarities(g, self.temperature)
                    losses["max_mi"] = _info_nce(similarities, self.num_masks)
                losses["info_nce_accuracy"] = info_nce_accuracy(similarities, self.num_masks)
            if self.approximation is not None:
                mean, logvar = self.approximation(x.detach())
                losses["apx"] = gaussian_nll(z.detach(), mean, logvar)
                rows = self.num_masks * len(z) // len(g)  # of an image
                group = rows if self.club_negatives == "image" else None
                bound = club_upper_bound(z, mean.detach(), logvar.detach(), group)
                losses["min_mi"] = follow_above_zero(bound) if self.club_floor else bound
        return losses

    def total_loss(
        self, rec: Tensor, g: Tensor, x: Tensor, z: Tensor, step_mi: StepMI | None = None
    ) -> Losses:
        """L = λ_rec·L_rec + λ1·L_max + λ2·L_min (+ L_apx), gated by Assumption 3 [Eq. 11].

        Args:
            rec: L_rec. g, x, z: see `mi_rows`.
            step_mi: the MI losses of the whole step, where this batch is a part of it.
        """
        mi = self.mi_losses(g, x, z)
        if step_mi is not None:
            mi = step_mi.put_into(mi, g, z)
        mi_loss = self.lambda_max * mi["max_mi"] + self.lambda_min * mi["min_mi"]
        loss = self.lambda_rec * rec + self.gate.is_open.clone() * mi_loss
        loss = loss + mi["apx"] if self.train_approximation else loss
        if self.lambda_uniformity:
            loss = loss + self.lambda_uniformity * uniformity(g, self.num_masks)
        return Losses(loss=loss, rec=rec, latent=g.detach(), **mi)


class MaskedAutoencoderViT(MAEViT, MutualInformationModel):
    """MAE with the losses of MI-MAE; takes what `MAEViT` and `MutualInformationModel` take."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.add_mi_networks(self.pos_embed.shape[2])

    def forward(
        self, imgs: Tensor, noise: Tensor | None = None, step_mi: StepMI | None = None
    ) -> Losses:
        """The losses of a batch.

        Args:
            imgs: [B, C, H, W], normalised.
            noise: uniform noise of `noise_shape(B)` from which the masks follow; None draws it.
            step_mi: see `total_loss`.
        """
        ids = self.permutations(imgs, noise)  # [B, N, L]
        z, x_visible = self.forward_encoder(imgs, ids)  # [B·N, 1 + K, D], [B·N, K, D]
        ids = ids[:, :, : self.num_visible + self.num_predicted]
        rec = reconstruction_loss(self.forward_decoder(z, ids), self.masked_targets(imgs, ids))
        return self.total_loss(rec, *self.mi_rows(x_visible, z[:, 1:], z[:, 0]), step_mi)

    def mi_inputs(self, imgs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`mi_rows` of a batch, without decoding."""
        z, x_visible = self.forward_encoder(imgs, self.permutations(imgs, noise))
        return self.mi_rows(x_visible, z[:, 1:], z[:, 0])


MODELS = {f"mimae_{name}": partial(MaskedAutoencoderViT, **size) for name, size in SIZES.items()}
mimae_vit_tiny_patch2 = MODELS["mimae_vit_tiny_patch2"]
mimae_vit_tiny_patch4 = MODELS["mimae_vit_tiny_patch4"]
mimae_vit_tiny_patch7 = MODELS["mimae_vit_tiny_patch7"]
mimae_vit_small_patch16 = MODELS["mimae_vit_small_patch16"]
mimae_vit_base_patch16 = MODELS["mimae_vit_base_patch16"]
mimae_vit_large_patch16 = MODELS["mimae_vit_large_patch16"]
mimae_vit_huge_patch14 = MODELS["mimae_vit_huge_patch14"]
