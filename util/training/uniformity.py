"""U-MAE's uniformity term, a control of our studies: it is known to help MAE at a small scale.

*How Mask Matters: Towards Theoretical Understandings of Masked Autoencoders*, NeurIPS 2022.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from util.cluster import distributed


def uniformity(latents: Tensor, num_masks: int) -> Tensor:
    """The mean squared cosine between latents of different images of the global batch.

    Theirs has each latent's cosine to itself in the mean, too, which is constant; pairs of one
    image's masks are left out, since they should be alike. 0 where there is one image alone.

    Args:
        latents: [B·N, D], rows of one image adjacent. num_masks: N.
    """
    with torch.autocast(latents.device.type, enabled=False):
        latents = F.normalize(latents, dim=1)
        squares = (latents @ distributed.gather_with_grad(latents).T) ** 2  # [B·N, W·B·N]
    rows = torch.arange(len(latents), device=latents.device) // num_masks
    columns = torch.arange(squares.shape[1], device=latents.device) // num_masks
    rows = rows + distributed.rank() * (len(latents) // num_masks)
    is_other = rows[:, None] != columns
    return (squares * is_other).sum() / is_other.sum().clamp_min(1)
