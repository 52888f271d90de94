"""How many directions features use: the monitor of collapse."""

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
