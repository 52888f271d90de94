"""How many directions features use, and how much of them tells images apart: of collapse."""

import torch
from torch import Tensor


def singular_values(features: Tensor) -> Tensor:
    """Those of features [n, D], the largest first, [min(n, D)], by their smaller Gram matrix.

    In float64, where the squaring costs nothing above 1e-8 of the largest; on a GPU this takes a
    small part of the time of a singular value decomposition.
    """
    if features.device.type == "mps":  # which has no float64
        features = features.cpu()
    features = features.double()
    wide = features.shape[0] < features.shape[1]
    gram = features @ features.T if wide else features.T @ features
    return torch.linalg.eigvalsh(gram).clamp_min(0).sqrt().flip(0)


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values of centred features [n, D].

    Roy & Vetterli, 2007; RankMe [Garrido et al., 2023] has it of features that are not centred.
    """
    centred = features.float() - features.float().mean(0)
    singular = singular_values(centred)
    share = singular / singular.sum().clamp_min(1e-12)
    return float(torch.exp(-(share * share.clamp_min(1e-12).log()).sum()))


def image_share(latents: Tensor, num_masks: int) -> float:
    """How much of the latents depends on the image: the variance over images of their means over
    an image's masks, as a share of the mean squared length. 0: all images have the same.

    Args:
        latents: [B·N, D], the N of an image adjacent.
    """
    of_image = latents.float().unflatten(0, (-1, num_masks)).mean(1)  # [B, D]
    variance = of_image.var(0, correction=0).sum()
    return float(variance / of_image.square().sum(1).mean().clamp_min(1e-12))
