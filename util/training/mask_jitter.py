"""`--mask_jitter`: each mask sees the image with a contrast and a brightness of its own.

Our extension, off by default, for studies. The masks of one crop share its light and colours, by
which InfoNCE could tell images apart without looking at what they show.
"""

import math
from collections.abc import Callable
from functools import partial

from torch import Tensor

from util.errors import UsageError


class MaskJitter:
    """The pixels of a channel become gain · pixel + shift, for each image and mask.

    Args:
        strength: s; gains are uniform in 1 ± s, shifts in ± s standard deviations of the
            normalised data.
        masks: have `num_masks` N and `num_patches` L. in_chans: C, each with its own draw.

    Raises:
        UsageError: fewer patches than draws for an image.
    """

    def __init__(self, strength: float, masks, in_chans: int):
        self.strength, self.shape = strength, (masks.num_masks, 2, in_chans)
        self.num_draws = math.prod(self.shape)
        if strength and self.num_draws > masks.num_patches:
            raise UsageError(
                f"--mask_jitter takes two draws for each of {masks.num_masks} masks x {in_chans} "
                f"channels from the noise of {masks.num_patches} patches: use a smaller patch"
            )

    def draws(self, noise: Tensor) -> Tensor:
        """Uniform in [−1, 1), of (image, mask, gain or shift, channel): [B, N, 2, C].

        The order of the patches follows from the first digits of `noise`, the masks'; these are
        the last twelve of its 24 bits. So a run's masks are the same with and without jitter, and
        whatever holds for them holds here: any number of processes, any step a run goes on from.
        """
        last_digits = noise.flatten(1)[:, : self.num_draws] * 2**12 % 1
        return 2 * last_digits.unflatten(1, self.shape) - 1

    def change(self, noise: Tensor | None) -> Callable[[Tensor], Tensor] | None:
        """What changes the pixels that the masks of this noise see; None: nothing does."""
        return partial(self, noise) if self.strength and noise is not None else None

    def __call__(self, noise: Tensor, patches: Tensor) -> Tensor:
        """Visible patches [B·N, K, P], pixels in the order (row, column, channel), changed."""
        gain, shift = (self.strength * self.draws(noise)).flatten(0, 1).unbind(1)  # [B·N, C] each
        pixels = patches.unflatten(2, (-1, gain.shape[1]))  # [B·N, K, p·p, C]
        return ((1 + gain[:, None, None]) * pixels + shift[:, None, None]).flatten(2)
