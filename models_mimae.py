"""MI-MAE in one file: orthogonal masks, InfoNCE, CLUB, the approximation network and the MAE.

*Learning Mask Invariant Mutual Information for Masked Image Modeling*, ICLR 2025. With one mask
and `lambda_max = lambda_min = 0` the model is MAE: same parameters, initialisation and loss.

Shapes: B images on this rank, N masks per image, L patches per image, K visible patches per mask,
D encoder width, p patch size, C channels, P = p·p·C pixels of a patch, W ranks.
Losses are means over the *global* batch: averaged over the ranks, the values and the gradients of
`forward` are those of one process that holds all W·B images.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models_pixels import PixelPrediction, full_precision, take_rows
from util import distributed
from util.args import check_one_of, image_size
from util.cached_mi import CachedMI
from util.errors import UsageError
from util.pos_embed import sincos_pos_embed

# ------------------------------------------------------------------------------- orthogonal masks


def orthogonal_permutations(noise: Tensor, num_masks: int, num_visible: int) -> Tensor:
    """Patch order for each mask, from one random permutation per image (Section 4.2).

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


def independent_permutations(noise: Tensor) -> Tensor:
    """A new permutation for each mask (Table 3c): noise [B, N, L] -> [B, N, L]."""
    return noise.argsort(dim=2)


def resolve_masking(
    num_patches: int, num_masks: int, mask_ratio: float, lambda_max: float
) -> tuple[int, int]:
    """(N, K) for a grid of L patches; `num_masks = 0` is complete masking (Fig. 2).

    Raises:
        UsageError: where a ratio or a number of masks cannot be used; the line names the flag.
    """
    if not 0 < mask_ratio < 1:
        raise UsageError(f"--mask_ratio {mask_ratio} is not between 0 and 1: MAE uses 0.75")
    num_visible = int(num_patches * (1 - mask_ratio))
    if num_visible < 1:
        raise UsageError(
            f"--mask_ratio {mask_ratio} leaves none of {num_patches} patches visible: "
            "lower it, or use a larger --input_size or a smaller patch"
        )
    if num_masks < 0:
        raise UsageError(f"--num_masks {num_masks} is negative: use 0 (complete masking) or more")
    num_masks = num_masks or max(2, round(1 / (1 - mask_ratio)))
    if num_masks == 1 and lambda_max > 0:
        raise UsageError(
            f"--num_masks 1 has no other mask for --lambda_max {lambda_max} to compare with: "
            "use --lambda_max 0 or more masks"
        )
    return num_masks, num_visible


# ----------------------------------------------------------------------- MI maximisation [Eq. 7, 8]


def latent_similarities(latents: Tensor, temperature: float) -> Tensor:
    """Cosine similarities / τ of this rank's latents to those of all ranks; a row's own is −inf.

    latents [B·N, D] -> [B·N, W·B·N]; columns are rank by rank.
    """
    latents = F.normalize(full_precision(latents), dim=1)
    similarities = latents @ distributed.gather_with_grad(latents).T / temperature
    row = torch.arange(len(latents), device=latents.device)
    similarities[row, row + distributed.rank() * len(latents)] = -math.inf
    return similarities


def ids_positives(num_rows: int, num_masks: int, device: torch.device) -> Tensor:
    """Columns of the other masks of each row's image in `latent_similarities`: [B·N, N − 1]."""
    row = torch.arange(num_rows, device=device)[:, None]
    shift = torch.arange(1, num_masks, device=device)
    local = row - row % num_masks + (row + shift) % num_masks
    return local + distributed.rank() * num_rows


def info_nce(latents: Tensor, num_masks: int, temperature: float) -> Tensor:
    """L_max, the InfoNCE loss between the masks of an image, in nats [Eq. 7 and 8].

    −log(exp s_ik / Σ_{j≠i} exp s_ij), averaged over all ordered pairs (i, k) of one image; the
    sum runs over all other latents of the global batch, the other positives included. For N = 2
    it is SimCLR's NT-Xent.

    Args:
        latents: [B·N, D], rows of one image adjacent.
        num_masks: N ≥ 2. temperature: τ.

    Returns:
        The mean over this rank's rows, a scalar.
    """
    return _info_nce(latent_similarities(latents, temperature), num_masks)


def _info_nce(similarities: Tensor, num_masks: int) -> Tensor:
    positives = ids_positives(len(similarities), num_masks, similarities.device)
    return (similarities.logsumexp(1) - similarities.gather(1, positives).mean(1)).mean()


def info_nce_accuracy(similarities: Tensor, num_masks: int) -> Tensor:
    """Share of rows whose nearest other latent is another mask of the same image."""
    positives = ids_positives(len(similarities), num_masks, similarities.device)
    return (similarities.argmax(1, keepdim=True) == positives).any(1).float().mean()


# ----------------------------------------------------------------- MI minimisation [Eq. 9, 10]


class ApproximationNetwork(nn.Module):
    """q_φ(z | x·m), a diagonal Gaussian (Section 5.4): x [rows, D] -> mean, logvar [rows, D].

    Where the embedded patches are narrower than the latents (Swin), x is [rows, input_dim].

    Our choice: the ReLU output is the log-variance, so σ² ≥ 1 and the precision is bounded. Read
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


def club_upper_bound(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """L_min, the CLUB bound of the mutual information, in nats per dimension [Eq. 10].

    mean_i [ log q(z_i | x_i) − mean_j log q(z_j | x_i) ], j over all rows of the global batch.
    For a diagonal Gaussian the inner mean needs two moments only,
    mean_j (z_j − μ_i)² = Var z + (E z − μ_i)², so the exact bound costs O(rows · D) and the
    ranks exchange 2·D numbers. The log-variances cancel.

    Args:
        z, mean, logvar: [rows, D]; mean and logvar of q(· | x_i) in row i.

    Returns:
        The mean over this rank's rows and over the D dimensions, a scalar.
    """
    z_mean = distributed.reduce_mean_with_grad(z.mean(0))  # [D]
    z_var = distributed.reduce_mean_with_grad(((z - z_mean) ** 2).mean(0))  # [D]
    positive = (z - mean) ** 2  # [rows, D]
    negative = z_var + (z_mean - mean) ** 2  # [rows, D]
    return 0.5 * ((negative - positive) * (-logvar).exp()).mean()


# -------------------------------------------------------------------------------- Assumption 3


class ReconstructionGate(nn.Module):
    """Assumption 3: the MI losses count only once L_rec has fallen below ε.

    Our choice: a running mean of L_rec over all ranks is tested, and once met it stays met. The
    state is not in the model's state dict, whose names are MAE's; checkpoints save it beside.
    """

    decay = 0.95

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold
        is_open = torch.tensor(1.0 if threshold == math.inf else 0.0)
        self.register_buffer("is_open", is_open, persistent=False)
        self.register_buffer("rec_mean", torch.tensor(0.0), persistent=False)
        self.register_buffer("num_updates", torch.tensor(0.0), persistent=False)

    @torch.no_grad()
    def update(self, rec: Tensor) -> None:
        if self.threshold == math.inf:
            return
        rec = distributed.reduce_mean(rec).to(self.rec_mean.dtype)
        self.num_updates += 1
        self.rec_mean.lerp_(rec, 1 - self.decay)
        unbiased = self.rec_mean / (1 - self.decay**self.num_updates)
        self.is_open.copy_(torch.maximum(self.is_open, (unbiased < self.threshold).float()))


# ------------------------------------------------------------------------------ the losses together


class MutualInformationModel(nn.Module):
    """A masked image model whose loss is that of MI-MAE [Eq. 11]; MAE and SimMIM build on it.

    Args:
        num_patches: L, what a mask can hide (patches; mask units for SimMIM).
        dim: D, width of the latents and of the approximation network.
        num_masks: N, masks per image; 0 is complete masking. mask_ratio: masked share of L.
        mask_type: `orthogonal` or `independent`.
        lambda_rec, lambda_max, lambda_min: weights of L_rec, L_max and L_min.
        temperature: τ of InfoNCE.
        latent_pool: the latent g is the class token (`cls`) or the mean patch token (`mean`) of z.
        club_level: one row of CLUB per masked `image`, or one per visible `token`.
        input_dim: width of the embedded patches, where it is not D.
        train_approximation: add L_apx; without it φ keeps its random weights (Table 3a, d).
        mi_start_loss: ε of Assumption 3; infinite: the MI losses count from the first step.

    Raises:
        UsageError: for ratios and names that cannot be used; the line names the flag.
    """

    def __init__(
        self, num_patches: int, dim: int, num_masks: int = 4, mask_ratio: float = 0.75,
        mask_type: str = "orthogonal", lambda_rec: float = 1.0, lambda_max: float = 1.0,
        lambda_min: float = 10.0, temperature: float = 0.1, latent_pool: str = "cls",
        club_level: str = "image", train_approximation: bool = True,
        mi_start_loss: float = math.inf, input_dim: int | None = None,
    ):  # fmt: skip
        super().__init__()
        check_one_of("--mask_type", mask_type, ("orthogonal", "independent"))
        check_one_of("--latent_pool", latent_pool, ("cls", "mean"))
        check_one_of("--club_level", club_level, ("image", "token"))
        if not temperature > 0:  # nor NaN
            raise UsageError(f"--temperature {temperature} is not positive: the default is 0.1")
        self.num_patches = num_patches
        self.num_masks, self.num_visible = resolve_masking(
            num_patches, num_masks, mask_ratio, lambda_max
        )
        self.mask_type, self.temperature = mask_type, temperature
        self.latent_pool, self.club_level = latent_pool, club_level
        self.lambda_rec, self.lambda_max, self.lambda_min = lambda_rec, lambda_max, lambda_min
        self.gate = ReconstructionGate(mi_start_loss)
        # Only L_min needs φ; without it the parameters are exactly MAE's.
        self.approximation = ApproximationNetwork(dim, input_dim) if lambda_min > 0 else None
        self.train_approximation = train_approximation
        if self.approximation is not None:
            self.approximation.requires_grad_(train_approximation)

    def noise_shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of the noise that `forward` needs: [B, L], or [B, N, L] for independent masks."""
        if self.mask_type == "orthogonal":
            return (batch_size, self.num_patches)
        return (batch_size, self.num_masks, self.num_patches)

    def permutations(self, imgs: Tensor, noise: Tensor | None) -> Tensor:
        """Patch order for each mask, [B, N, L]: the first K of a row are visible."""
        if noise is None:
            noise = torch.rand(self.noise_shape(len(imgs)), device=imgs.device)
        if self.mask_type == "independent":
            return independent_permutations(noise)
        return orthogonal_permutations(noise, self.num_masks, self.num_visible)

    def total_loss(
        self, rec: Tensor, x: Tensor, z: Tensor, latent: Tensor, cached: CachedMI | None = None
    ) -> dict[str, Tensor]:
        """L = λ_rec·L_rec + λ1·L_max + λ2·L_min (+ L_apx), gated by Assumption 3 [Eq. 11].

        Args:
            rec: L_rec. latent: g, [B·N, D].
            x, z: visible embedded patches x·m and their outputs, [B·N, K, D] each.
            cached: the MI losses of the whole step, where this batch is a part of it.

        Returns:
            `loss` and its parts `rec`, `max_mi`, `min_mi`, `apx` (zero where not computed); for
            the log `info_nce_accuracy` and `latent`, detached.
        """
        x, z = self.club_rows(x, z, latent)
        with torch.autocast(x.device.type, enabled=False):  # MI losses in full precision
            min_mi, apx = self.mi_minimisation(x, z)
            if cached is None:
                max_mi, accuracy = self.mi_maximisation(latent)
            else:
                max_mi, min_mi, accuracy = cached.max_mi, cached.min_mi, cached.accuracy
        mi_loss = self.lambda_max * max_mi + self.lambda_min * min_mi
        if cached is not None:  # their value with the gradient of this batch's part in them
            surrogate = cached.surrogate(latent, z)
            mi_loss = mi_loss + surrogate - surrogate.detach()
        loss = self.lambda_rec * rec + self.gate.is_open.clone() * mi_loss
        loss = loss + apx if self.train_approximation else loss
        if self.training and cached is None:
            self.gate.update(rec)
        return {
            "loss": loss, "rec": rec, "max_mi": max_mi, "min_mi": min_mi, "apx": apx,
            "info_nce_accuracy": accuracy, "latent": latent.detach(),
        }  # fmt: skip

    def club_rows(self, x: Tensor, z: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs (x, z) of q(z | x), a row per masked image or per visible token."""
        if self.club_level == "image":
            return full_precision(x.mean(1)), full_precision(latent)  # [B·N, D]
        return full_precision(x.flatten(0, 1)), full_precision(z.flatten(0, 1))  # [B·N·K, D]

    def mi_maximisation(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """L_max and the InfoNCE accuracy of latents [B·N, D]; for the log only where λ1 = 0."""
        if self.num_masks == 1:
            return latent.new_zeros(()), latent.new_zeros(())
        with torch.set_grad_enabled(self.lambda_max > 0 and torch.is_grad_enabled()):
            similarities = latent_similarities(latent, self.temperature)
            max_mi = _info_nce(similarities, self.num_masks)
        return max_mi, info_nce_accuracy(similarities.detach(), self.num_masks)

    def mi_minimisation(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """L_min, which moves the encoder through z alone, and L_apx, which moves φ alone."""
        if self.approximation is None:
            return z.new_zeros(()), z.new_zeros(())
        mean, logvar = self.approximation(x.detach())
        apx = gaussian_nll(z.detach(), mean, logvar)
        return club_upper_bound(z, mean.detach(), logvar.detach()), apx

    def cache_mi(self, latents: list[Tensor], rows: list[tuple[Tensor, Tensor]]) -> list[CachedMI]:
        """The MI losses over all micro-batches of a step, and the gradients of each.

        Args:
            latents: g of each micro-batch. rows: what `club_rows` gave for each.
        """
        latent = torch.cat(latents).detach().requires_grad_()
        x = torch.cat([x for x, _ in rows]).detach()
        z = latent if self.club_level == "image" else torch.cat([z for _, z in rows]).detach()
        z.requires_grad_()
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            max_mi, accuracy = self.mi_maximisation(latent)
            min_mi, _ = self.mi_minimisation(x, full_precision(z))
            mi_loss = self.lambda_max * max_mi + self.lambda_min * min_mi
            leaves = [latent] if z is latent else [latent, z]
            # A leaf that no loss reaches has the gradient 0.
            mi_loss = mi_loss + sum(0 * leaf.sum() for leaf in leaves)
            grads = torch.autograd.grad(mi_loss, leaves)
        losses = (max_mi.detach(), min_mi.detach(), accuracy)
        parts = zip(*(grad.chunk(len(latents)) for grad in grads), strict=True)
        return [CachedMI(*losses, part, len(latents)) for part in parts]


# ------------------------------------------------------------------------- the masked autoencoder


class MaskedAutoencoderViT(PixelPrediction, MutualInformationModel):
    """Masked autoencoder with a ViT encoder and the losses of MI-MAE.

    Args:
        img_size: pixels, a number or (height, width), divisible by `patch_size`.
        norm_pix_loss: normalise the pixels of each target patch.
        pred_ratio: share of the masked patches that are decoded in training, a mask's first in its
            order, which is random; 1 is MAE.
        grad_checkpointing: recompute the blocks in the backward pass, to save memory.
        mutual_information: the arguments of `MutualInformationModel`, `num_masks` and on.
    """

    def __init__(
        self, img_size: int | Sequence[int] = 224, patch_size: int = 16, in_chans: int = 3,
        embed_dim: int = 768, depth: int = 12, num_heads: int = 12,
        decoder_embed_dim: int = 512, decoder_depth: int = 8, decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_layer: Callable[[int], nn.Module] = partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss: bool = False, pred_ratio: float = 1.0, grad_checkpointing: bool = False,
        **mutual_information,
    ):  # fmt: skip
        height, width = image_size(img_size, patch_size)
        grid = (height // patch_size, width // patch_size)
        super().__init__(grid, patch_size, norm_pix_loss, dim=embed_dim, **mutual_information)
        if not 0 < pred_ratio <= 1:
            raise UsageError(f"--pred_ratio {pred_ratio} is not above 0 and at most 1 (MAE's)")
        self.num_predicted = max(1, round(pred_ratio * (self.num_patches - self.num_visible)))
        self.grad_checkpointing = grad_checkpointing
        block = partial(Block, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm_layer)

        self.patch_embed = PatchEmbed((height, width), patch_size, in_chans, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = _fixed(sincos_pos_embed(embed_dim, grid))
        self.blocks = nn.ModuleList([block(embed_dim, num_heads) for _ in range(depth)])
        self.norm = norm_layer(embed_dim)

        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_embed_dim))
        self.decoder_pos_embed = _fixed(sincos_pos_embed(decoder_embed_dim, grid))
        self.decoder_blocks = nn.ModuleList(
            [block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth)]
        )
        self.decoder_norm = norm_layer(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, patch_size**2 * in_chans)
        self._initialize_weights()

    def _initialize_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # The patch embedding is a linear layer that happens to be written as a convolution.
        nn.init.xavier_uniform_(self.patch_embed.proj.weight.flatten(1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, imgs: Tensor, noise: Tensor | None = None, cached: CachedMI | None = None
    ) -> dict[str, Tensor]:
        """The losses of a batch, as `total_loss` returns them.

        Args:
            imgs: [B, C, H, W], normalised.
            noise: uniform noise of `noise_shape(B)` from which the masks follow; None draws it.
            cached: see `total_loss`.
        """
        ids = self.permutations(imgs, noise)  # [B, N, L]
        z, x_visible = self.forward_encoder(imgs, ids)  # [B·N, 1 + K, D], [B·N, K, D]
        ids = ids[:, :, : self.num_visible + self.num_predicted]
        rec = self.reconstruction_loss(imgs, self.forward_decoder(z, ids), ids)
        return self.total_loss(rec, x_visible, z[:, 1:], self.pool(z), cached)

    def pool(self, z: Tensor) -> Tensor:
        """The latent g of z [B·N, 1 + K, D]: [B·N, D]."""
        return z[:, 0] if self.latent_pool == "cls" else z[:, 1:].mean(1)

    def mi_inputs(self, imgs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `total_loss` needs for the MI losses, without decoding: x, z and g."""
        z, x_visible = self.forward_encoder(imgs, self.permutations(imgs, noise))
        return x_visible, z[:, 1:], self.pool(z)

    def predict(self, imgs: Tensor, ids: Tensor) -> Tensor:
        return self.forward_decoder(self.forward_encoder(imgs, ids)[0], ids)

    def embed_patches(self, imgs: Tensor) -> Tensor:
        """Patch and position embedding, without the class token: [B, L, D].

        A matrix product: what the convolution of `patch_embed` computes, at less cost.
        """
        proj = self.patch_embed.proj
        weight = proj.weight.permute(0, 2, 3, 1).flatten(1)  # [D, P], pixels as in patchify
        return F.linear(self.patchify(imgs), weight, proj.bias) + self.pos_embed[:, 1:]

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

    def encode_tokens(self, x: Tensor) -> Tensor:
        """Class token, blocks and final norm: embedded patches [rows, K, D] -> [rows, 1+K, D]."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        return self.norm(self.run_blocks(self.blocks, torch.cat([cls_token, x], dim=1)))

    def forward_encoder(self, imgs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embed the patches once and encode all N masks in one batch.

        Returns:
            z [B·N, 1 + K, D] and the visible embedded patches x·m [B·N, K, D].
        """
        x = self.embed_patches(imgs)  # [B, L, D]
        x_visible = take_rows(x, ids[:, :, : self.num_visible])  # [B·N, K, D]
        return self.encode_tokens(x_visible), x_visible

    def forward_decoder(self, z: Tensor, ids: Tensor) -> Tensor:
        """Predict the pixels of the masked patches among `ids`, in their order: [B·N, M, P].

        Differs from MAE: the tokens stay in the order of `ids` (attention does not see an order,
        positions are added), and the last MLP and the prediction head run on masked tokens only.

        Args:
            z: [B·N, 1 + K, D]. ids: [B, N, K + M], for each mask its visible patches, then M ≤
                L − K masked ones.
        """
        position = take_rows(
            self.decoder_pos_embed[:, 1:].expand(len(ids), -1, -1), ids
        )  # [B·N, K + M, ·]
        visible = self.decoder_embed(z)  # [B·N, 1 + K, ·]
        x = torch.cat(
            [
                visible[:, :1] + self.decoder_pos_embed[:, :1],
                visible[:, 1:] + position[:, : self.num_visible],
                self.mask_token + position[:, self.num_visible :],
            ],
            dim=1,
        )  # [B·N, 1 + K + M, ·]
        x = self.run_blocks(self.decoder_blocks, x, num_read=ids.shape[2] - self.num_visible)
        return self.decoder_pred(self.decoder_norm(x))

    def block_shapes(self) -> list[tuple[int, int, int]]:
        """(tokens per masked image, width, depth) of what the backward pass keeps, for memory."""
        encoded = 1 + self.num_visible
        decoded = encoded + self.num_predicted
        return [
            (encoded, self.pos_embed.shape[2], len(self.blocks)),
            (decoded, self.decoder_pos_embed.shape[2], len(self.decoder_blocks)),
        ]

    def encode(self, imgs: Tensor) -> Tensor:
        """Encoder output of the whole, unmasked image: [B, 1 + L, D], class token first."""
        return self.encode_tokens(self.embed_patches(imgs))


def _last_tokens(block: nn.Module, count: int, x: Tensor) -> Tensor:
    """A block's last `count` tokens, which attend to all: x [rows, T, ·] -> [rows, count, ·].

    The decoder's blocks have neither layer scale nor drop path.
    """
    x = (x + block.attn(block.norm1(x)))[:, -count:]
    return x + block.mlp(block.norm2(x))


def _fixed(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=False)


# ----------------------------------------------------------------------------------------- sizes

# Our choice: for images of 8 to 32 pixels, on a CPU too.
_TINY = dict(
    embed_dim=128, depth=6, num_heads=4,
    decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4,
)  # fmt: skip
_vit = partial(partial, MaskedAutoencoderViT)
mimae_vit_tiny_patch2 = _vit(patch_size=2, **_TINY)
mimae_vit_tiny_patch4 = _vit(patch_size=4, **_TINY)
mimae_vit_small_patch16 = _vit(patch_size=16, embed_dim=384, depth=12, num_heads=6)
mimae_vit_base_patch16 = _vit(patch_size=16, embed_dim=768, depth=12, num_heads=12)
mimae_vit_large_patch16 = _vit(patch_size=16, embed_dim=1024, depth=24, num_heads=16)
mimae_vit_huge_patch14 = _vit(patch_size=14, embed_dim=1280, depth=32, num_heads=16)

MODELS = {
    "mimae_vit_tiny_patch2": mimae_vit_tiny_patch2,
    "mimae_vit_tiny_patch4": mimae_vit_tiny_patch4,
    "mimae_vit_small_patch16": mimae_vit_small_patch16,
    "mimae_vit_base_patch16": mimae_vit_base_patch16,
    "mimae_vit_large_patch16": mimae_vit_large_patch16,
    "mimae_vit_huge_patch14": mimae_vit_huge_patch14,
}
