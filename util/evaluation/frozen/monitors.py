"""Label-free numbers of frozen features. They are monitors: never choose an encoder by them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from util.training.effective_rank import effective_rank, singular_values

MAX_IMAGES = 4096  # whose features are looked at


def rank_me(features: Tensor) -> float:
    """exp of the entropy of the singular values of features [n, D] [Garrido et al., 2023].

    The features are not centred, unlike `effective_rank`'s.
    """
    singular = singular_values(features)
    share = singular / singular.sum() + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def alignment(views: Tensor) -> float:
    """Mean squared distance of the unit features of two masks of an image, views [B, N, D]
    [Wang & Isola, 2020]."""
    views = F.normalize(views.float(), dim=2)
    num_masks = views.shape[1]
    # ‖a − b‖² = 2 − 2 a·b, over all pairs of different masks.
    similar = views.sum(1).square().sum(1) - num_masks
    return float((2 - 2 * similar / (num_masks * (num_masks - 1))).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(−2 ‖a − b‖²) over pairs of unit features [n, D] [Wang & Isola]."""
    distances = torch.pdist(F.normalize(features.float(), dim=1)).square()
    return float((-2 * distances).exp().mean().log())


def nearest_is_same_image(views: Tensor) -> float:
    """Percent of views [B, N, D] whose nearest other view, by cosine, is of the same image."""
    num_masks = views.shape[1]
    flat = F.normalize(views.float(), dim=2).flatten(0, 1)  # [B·N, D]
    similar = (flat @ flat.T).fill_diagonal_(-2)
    image = torch.arange(len(flat)) // num_masks
    return 100 * float((image[similar.argmax(1)] == image).float().mean())


def label_free(features: Tensor, views: Tensor | None) -> dict[str, float]:
    """All monitors by name, of an image set's features [n, D] and, where there are some, of the
    features of its images under N masks [B, N, D]."""
    part = features[:MAX_IMAGES]
    found = {"effective rank": effective_rank(part), "RankMe": rank_me(part)}
    if views is not None:
        found["alignment of masks"] = alignment(views)
        if len(views) > 1:  # it is of pairs of images
            found["uniformity"] = uniformity(views[:, 0])
        found["InfoNCE accuracy of masks"] = nearest_is_same_image(views)
    return found
