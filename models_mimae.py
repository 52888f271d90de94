"""MI-MAE in one file: orthogonal masks, InfoNCE, CLUB, and their sum with MAE's loss.

*Learning Mask Invariant Mutual Information for Masked Image Modeling*, ICLR 2025. MAE is in
`models_mae`: with one mask and `lambda_max = lambda_min = 0` this model is that one.

Shapes: B images on this rank, N masks per image, L patches per image, K visible patches per mask,
D encoder width, W ranks. Losses are means over the *global* batch: averaged over the ranks, the
values and the gradients of `forward` are those of one process that holds all W·B images.
"""

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models_mae import SIZES, MAEViT, draw_weights
from models_masked import RandomMasks, full_precision
from util.checks import check_one_of
from util.cluster import distributed
from util.errors import UsageError
from util.training.mask_jitter import MaskJitter
from util.training.uniformity import uniformity

# ---------------------------------------------------------------- orthogonal masks [Section 4.2]


def orthogonal_permutations(noise: Tensor, num_masks: int, num_visible: int) -> Tensor:
    """Patch order for each mask, from one random permutation per image.

    Mask k sees K of the permutation's positions, modulo L, from k·K on where N·K ≤ L: the visible
    sets are disjoint. Else from ⌊k·L/N⌋ on: no two are the same, and they overlap evenly.

    Args:
        noise: [B, L]; its argsort is the permutation, and row 0 of the result (MAE's masks).
        num_masks: N. num_visible: K.

    Returns:
        [B, N, L] patch indices; the first K of row k are what mask k sees, the rest is masked.
    """
    permutation = noise.argsort(dim=1)  # [B, L]
    starts = [min(k * num_visible, k * noise.shape[1] // num_masks) for k in range(num_masks)]
    return torch.stack([permutation.roll(-start, 1) for start in starts], dim=1)


def resolve_num_masks(num_masks: int, mask_ratio: float) -> int:
    """N; 0 is *complete masking* [Fig. 2]: the masks of which nearly each patch is seen by one."""
    return num_masks or max(2, round(1 / (1 - mask_ratio)))


class OrthogonalMasks(RandomMasks):
    """N masks for each image, `orthogonal` or `independent`: with a permutation each [Table 3c].

    Args:
        num_patches: L, what a mask can hide (patches; mask units for SimMIM).
        num_masks: N; 0 is complete masking. mask_ratio: masked share of L.
    """

    def __init__(self, num_patches: int, num_masks: int, mask_ratio: float, mask_type: str):
        super().__init__(num_patches, mask_ratio)
        check_one_of("--mask_type", mask_type, ("orthogonal", "independent"))
        if not 0 <= num_masks <= num_patches:
            raise UsageError(f"--num_masks {num_masks}: 0 (complete) to {num_patches}, the patches")
        self.num_masks, self.mask_type = resolve_num_masks(num_masks, mask_ratio), mask_type

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        masks = () if self.mask_type == "orthogonal" else (self.num_masks,)
        return (batch_size, *masks, self.num_patches)

    def order(self, noise: Tensor) -> Tensor:
        if self.mask_type == "independent":
            return noise.argsort(dim=2)
        return orthogonal_permutations(noise, self.num_masks, self.num_visible)


# ---------------------------------------------------------------------- MI maximisation [Eq. 7, 8]


def latent_similarities(latents: Tensor, temperature: float) -> Tensor:
    """s_ij, cosine / τ, between latents [B·N, D] and those of all ranks, in the ranks' order,
    [B·N, W·B·N]; a row's own (j = i) is −inf."""
    latents = F.normalize(full_precision(latents), dim=1)
    similarities = latents @ distributed.gather_with_grad(latents).T / temperature
    # Where a row meets itself; by indices the number would wait for the GPU to be copied to it.
    similarities.diagonal(distributed.rank() * len(latents)).fill_(-math.inf)
    return similarities


def ids_positives(similarities: Tensor, num_masks: int) -> Tensor:
    """Columns of the other masks of each row's image: [B·N, N − 1]."""
    row = torch.arange(len(similarities), device=similarities.device)[:, None]
    shift = torch.arange(1, num_masks, device=similarities.device)
    return row - row % num_masks + (row + shift) % num_masks + distributed.rank() * len(row)


def info_nce(latents: Tensor, num_masks: int, temperature: float) -> Tensor:
    """L_max, the InfoNCE loss between the masks of an image, in nats [Eq. 7 and 8].

    −log(exp s_ik / Σ_{j≠i} exp s_ij), averaged over all ordered pairs (i, k) of one image; j runs
    over all other latents of the global batch. For N = 2 it is SimCLR's NT-Xent.

    Args:
        latents: [B·N, D], rows of one image adjacent. num_masks: N ≥ 2. temperature: τ.
    """
    similarities = latent_similarities(latents, temperature)  # [B·N, W·B·N]
    positive = similarities.gather(1, ids_positives(similarities, num_masks)).mean(1)
    return (similarities.logsumexp(1) - positive).mean()


@torch.no_grad()
def info_nce_accuracy(latents: Tensor, num_masks: int, temperature: float) -> Tensor:
    """Share of latents [B·N, D] whose nearest other one is another mask of the same image."""
    similarities = latent_similarities(latents, temperature)
    is_nearest = similarities.argmax(1, keepdim=True) == ids_positives(similarities, num_masks)
    return is_nearest.any(1).float().mean()


# --------------------------------------------------------------------- MI minimisation [Eq. 9, 10]


class ApproximationNetwork(nn.Module):
    """q_φ(z | x·m), a diagonal Gaussian [Section 5.4]: x [rows, D] -> mean, logvar [rows, D].

    Of a Swin x is narrower, [rows, input_dim]. Our choice: the ReLU output is the log-variance, so
    σ² ≥ 1; read as a variance with a small floor, λ2 = 10 made a small run collapse.
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
    return 0.5 * ((z - mean) ** 2 * (-logvar).exp() + logvar + math.log(2 * math.pi)).mean()


def club_upper_bound(z: Tensor, mean: Tensor, logvar: Tensor, group: int | None) -> Tensor:
    """L_min, the CLUB bound of the mutual information, in nats per dimension [Eq. 10].

    mean_j [ log q(z_j | x_j) − mean_k log q(z_k | x_j) ], k over the rows of j's group: an image's
    masks lose what is peculiar to one of them. For a diagonal Gaussian two moments suffice,
    mean_k (z_k − μ_j)² = Var z + (E z − μ_j)², so the exact bound costs O(rows · D).

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


def follow_above(bound: Tensor, floor: str) -> tuple[Tensor, Tensor]:
    """`bound`, and whether it is followed; with the floor `batch` it is without its gradient where
    its mean over the global batch is below zero. Our choice: mutual information is not negative,
    there φ lags behind the encoder and Eq. 10 is no bound [Appendix A.4]."""
    is_followed = (distributed.reduce_mean(bound) > 0) | (floor == "none")
    return torch.where(is_followed, bound, bound.detach()), is_followed


# ------------------------------------------------------------------------- Assumption 3 [Eq. 5]


class ReconstructionGate(nn.Module):
    """Assumption 3: the MI losses count only once L_rec has fallen below ε.

    Our choice: a running mean over all ranks is tested; once met it stays met. `start` is ε, or as
    `80%`, which is `auto`, a share of the mean patch's loss; inf: open at once. A run saves it."""

    decay, auto = 0.95, "80%"

    def __init__(self, start: float | str):
        super().__init__()
        start = self.auto if start == "auto" else start
        self.is_share = isinstance(start, str)
        self.threshold = float(start[:-1]) / 100 if self.is_share else start
        self.is_watched = self.threshold < math.inf
        own = dict(is_open=not self.is_watched, rec_mean=0, num_updates=0, of_share=self.is_share)
        for name, value in own.items():
            self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    @torch.no_grad()
    def update(self, rec: Tensor, mean_patch: Tensor) -> None:
        """Count a step's mean L_rec on this rank, and that of the mean patch, until it is open."""
        if not self.is_watched:
            return
        rec, mean_patch = distributed.reduce_mean(torch.stack([rec, mean_patch]).float())
        unit = mean_patch if self.is_share else torch.ones_like(rec)
        counts = (unit > 0) * (1 - self.is_open)  # a run's first image is its own mean patch
        rec = torch.where(counts > 0, rec / unit, self.rec_mean)
        self.num_updates += counts
        self.rec_mean.lerp_(rec.to(self.rec_mean.dtype), (1 - self.decay) * counts)
        unbiased = self.rec_mean / (1 - self.decay**self.num_updates)
        self.is_open.copy_(torch.maximum(self.is_open, (unbiased < self.threshold).float()))

    def settle(self) -> None:
        """Once open, exchange nothing more; a saved mean of the other unit begins anew. For log
        steps, since this waits for the device."""
        if bool(self.of_share) != self.is_share:
            self.rec_mean, self.num_updates = self.rec_mean * 0, self.num_updates * 0
            self.of_share.fill_(self.is_share)
        self.is_watched = not bool(self.is_open)


# ------------------------------------------------------------------- the objective [Eq. 7 to 11]


class Losses(TypedDict):
    """What a model's `forward` returns: scalars, zero where they are not computed, and rows."""

    loss: Tensor  # the sum
    rec: Tensor  # L_rec
    max_mi: Tensor  # L_max
    min_mi: Tensor  # L_min
    apx: Tensor  # L_apx
    info_nce_accuracy: Tensor  # for the log
    min_mi_followed: Tensor  # for the log: whether L_min moves the encoder in this step
    mean_patch: Tensor  # for the log and the gate: L_rec of predicting the data's mean patch
    rows: "Rows"


class Rows(NamedTuple):
    """What the losses of mutual information are computed from."""

    g: Tensor  # [B·N, ·], what InfoNCE compares
    x: Tensor  # [rows, ·], the inputs of q(z | x): embedded patches
    z: Tensor  # [rows, D], the latents


@dataclass(eq=False)
class MutualInformation:
    """L_max, L_min, L_apx and their sum with L_rec; MI-MAE has one, and MI-SimMIM.

    Its networks become parts of the model by `give_to`, so that a checkpoint has φ as
    `approximation.*`. They are drawn apart: all models of one seed start from the same encoder.

    Raises:
        UsageError: numbers and names that cannot be used; the line names the flag.
    """

    dim: int  # D
    num_masks: int  # N
    input_dim: int | None = None  # of the embedded patches; None: D
    lambda_rec: float = 1.0  # weight of L_rec
    lambda_max: float = 1.0  # λ1, of L_max
    lambda_min: float = 10.0  # λ2, of L_min
    temperature: float = 0.07  # τ of InfoNCE
    latent_pool: str = "cls"  # the latent: class token (`cls`) or mean patch token (`mean`) of z
    mi_head: str = "none"  # InfoNCE compares it (`none`) or a projection (`mlp`), dropped later
    club_level: str = "image"  # a row of CLUB is a masked `image`, or a visible `token`;
    club_negatives: str = "image"  # it is compared with rows of its `image`, or of the `batch`
    club_floor: str = "batch"  # follow L_min where the `batch`'s is above zero, or always (`none`)
    train_approximation: bool = True  # by L_apx; else φ keeps its random weights [Table 3a, d]
    mi_start_loss: float | str = math.inf  # ε of Assumption 3, as `ReconstructionGate` has it
    lambda_uniformity: float = 0.0  # weight of U-MAE's term, a control of studies

    def __post_init__(self):
        check_one_of("--latent_pool", self.latent_pool, ("cls", "mean"))
        check_one_of("--mi_head", self.mi_head, ("none", "mlp"))
        check_one_of("--club_level", self.club_level, ("image", "token"))
        check_one_of("--club_negatives", self.club_negatives, ("image", "batch"))
        check_one_of("--club_floor", self.club_floor, ("batch", "none"))
        if not self.temperature > 0:  # nor NaN
            raise UsageError(f"--temperature {self.temperature} is not positive: use 0.07")
        in_image = self.club_level == self.club_negatives == "image"
        if self.num_masks == 1 and (self.lambda_max or (self.lambda_min and in_image)):
            raise UsageError(
                "--num_masks 1 has no other mask for --lambda_max and --lambda_min: set both to 0"
            )
        self.is_used = self.lambda_max > 0 or self.lambda_min > 0
        self.gate = ReconstructionGate(self.mi_start_loss if self.is_used else math.inf)
        self.approximation = self.head = None
        if self.lambda_min > 0:
            self.approximation = ApproximationNetwork(self.dim, self.input_dim)
            self.approximation.requires_grad_(self.train_approximation)
        if self.mi_head == "mlp" and self.lambda_max > 0:
            from timm.layers import Mlp

            self.head = Mlp(self.dim, 2 * self.dim, 256)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        for network in filter(None, (self.approximation, self.head)):
            draw_weights(network, generator)

    def give_to(self, model: nn.Module) -> None:
        """Make the networks and the gate the model's own parts."""
        model.approximation, model.mi_head, model.gate = self.approximation, self.head, self.gate

    def rows(self, x: Tensor, z: Tensor, cls_token: Tensor) -> Rows:
        """What the losses compare, of x·m, its outputs z [B·N, K, D] and cls_token [B·N, D]."""
        latent = full_precision(cls_token if self.latent_pool == "cls" else z.mean(1))
        g = full_precision(self.head(latent)) if self.head else latent
        if self.club_level == "image":
            return Rows(g, full_precision(x.mean(1)), latent)
        return Rows(g, full_precision(x.flatten(0, 1)), full_precision(z.flatten(0, 1)))

    def losses(self, rows: Rows) -> dict[str, Tensor]:
        """L_max, which moves the encoder, L_min, which moves it through z alone, and L_apx, which
        moves φ alone; a term of weight 0 is for the log only."""
        g, x, z = rows
        names = ("max_mi", "min_mi", "apx", "info_nce_accuracy", "min_mi_followed")
        losses = dict.fromkeys(names, z.new_zeros(()))
        with torch.autocast(x.device.type, enabled=False):  # in full precision
            if self.num_masks > 1:
                compared = (g, self.num_masks, self.temperature)
                with torch.set_grad_enabled(self.lambda_max > 0 and torch.is_grad_enabled()):
                    losses["max_mi"] = info_nce(*compared)
                losses["info_nce_accuracy"] = info_nce_accuracy(*compared)
            if self.approximation is not None:
                mean, logvar = self.approximation(x.detach())
                losses["apx"] = gaussian_nll(z.detach(), mean, logvar)
                in_image = self.club_negatives == "image"
                group = self.num_masks * len(z) // len(g) if in_image else None
                bound = club_upper_bound(z, mean.detach(), logvar.detach(), group)
                losses["min_mi"], is_followed = follow_above(bound, self.club_floor)
                losses["min_mi_followed"] = is_followed * self.gate.is_open
        if self.lambda_uniformity:
            losses["uniformity"] = uniformity(g, self.num_masks)
        return losses

    def total(self, rec: Tensor, mi: dict[str, Tensor]) -> Tensor:
        """L = λ_rec·L_rec + λ1·L_max + λ2·L_min (+ L_apx), gated by Assumption 3 [Eq. 11]."""
        gate = self.gate.is_open.clone()
        mi_loss = gate * (self.lambda_max * mi["max_mi"] + self.lambda_min * mi["min_mi"])
        loss = self.lambda_rec * rec + mi_loss + self.lambda_uniformity * mi.get("uniformity", 0.0)
        return loss + mi["apx"] if self.train_approximation else loss

    def all_losses(self, rec: Tensor, mean_patch: Tensor, rows: Rows) -> Losses:
        mi = self.losses(rows)
        return Losses(loss=self.total(rec, mi), rec=rec, mean_patch=mean_patch, rows=rows, **mi)


def take_mi_options(options: dict[str, object]) -> dict[str, object]:
    """Take `MutualInformation`'s options out of a model's options, and return them."""
    names = {field.name for field in fields(MutualInformation)[3:]}  # what follows from no other
    return {name: options.pop(name) for name in names & options.keys()}


class MaskedAutoencoderViT(MAEViT):
    """MI-MAE: MAE with N masks for each image and the mutual information of their latents.

    Args:
        num_masks, mask_ratio, mask_type: of `OrthogonalMasks`. mask_jitter: of `MaskJitter`.
        options: the arguments of `MAEViT` and of `MutualInformation`.
    """

    outside_gradient_norm = ("approximation.",)  # moved by L_apx alone

    def __init__(
        self, *sizes, num_masks: int = 4, mask_ratio: float = 0.75,
        mask_type: str = "orthogonal", mask_jitter: float = 0.0, **options,
    ):  # fmt: skip
        mi_options = take_mi_options(options)
        super().__init__(*sizes, mask_ratio=mask_ratio, **options)
        self.masks = OrthogonalMasks(self.masks.num_patches, num_masks, mask_ratio, mask_type)
        self.mi = MutualInformation(self.pos_embed.shape[2], self.masks.num_masks, **mi_options)
        self.mi.give_to(self)
        self.jitter = MaskJitter(mask_jitter, self.masks, self.patch_embed.proj.in_channels)

    def forward(self, imgs: Tensor, noise: Tensor | None = None) -> Losses:
        """The losses of a batch of normalised images [B, C, H, W].

        Args:
            noise: uniform, of `masks.noise_shape(B)`, from which the masks follow; None draws it.
        """
        ids, target = self.draw_masks(imgs, noise), self.targets(imgs)  # [B, N, L], [B, L, P]
        z, x_visible = self.forward_encoder(imgs, ids, self.jitter.change(noise))  # [B·N, ·, D]
        rec = self.decoded_loss(z, target, ids)  # [Eq. 1]
        rows = self.mi.rows(x_visible, z[:, 1:], z[:, 0])
        return self.mi.all_losses(rec, self.mean_patch_loss(target), rows)  # [Eq. 7 - 11]

    def mi_rows(self, imgs: Tensor, noise: Tensor) -> Rows:
        """What the losses of mutual information compare in a batch, without decoding it."""
        ids = self.draw_masks(imgs, noise)
        z, x_visible = self.forward_encoder(imgs, ids, self.jitter.change(noise))
        return self.mi.rows(x_visible, z[:, 1:], z[:, 0])


MODELS = {f"mimae_{name}": partial(MaskedAutoencoderViT, **size) for name, size in SIZES.items()}
globals().update(MODELS)  # mimae_vit_base_patch16 and so on are functions of this module
