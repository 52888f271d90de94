"""What is rehearsed: every kind of forward pass that the mains run on a GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.gpu.forwards import (
    Built,
    classifying,
    detecting,
    detection,
    finetuning,
    frozen,
    monitors,
    pretraining,
    probing,
    regression,
    segmentation,
    segmenting,
)  # fmt: skip


@dataclass
class Case:
    """A kind of forward pass, in a training step or elsewhere.

    architecture: of an encoder that has no name. answers: what `FakeGPU` makes up. has_amps: it
    depends on the precision.
    """

    name: str
    build: Callable[..., Built]
    flags: tuple[str, ...] = ()
    architecture: dict | None = None
    is_step: bool = True
    answers: dict = field(default_factory=dict)
    has_amps: bool = True

    def built(self) -> Built:
        """What goes to the device, and what runs there."""
        more = {"architecture": self.architecture} if self.architecture else {}
        return self.build(*self.flags, **more)


_BEIT = dict(
    family="beit", patch_size=4, embed_dim=64, depth=2, num_heads=2, mlp_ratio=4.0, eps=1e-6,
    qkv_bias=True, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True,
    use_shared_rel_pos_bias=False,
)  # fmt: skip
_TINY, _SWIN = ("--model", "mimae_vit_tiny_patch2"), ("--input_size", "16", "--model")
_MINI, _VIT = ("--model", "swin_mini_patch2"), ("--model", "vit_tiny_patch4")
# No box is empty, and each of the maps has as many of the regions.
_FOUR_MAPS, _TWO_MAPS = dict(truth=False, one_in=4), dict(truth=False, one_in=2)
_VARIANTS = {
    "MI-MAE": (),
    "MI-MAE, gate by L_rec": ("--mi_start_loss", "auto", "--clip_grad", "1"),
    "MI-MAE, three quarters decoded": ("--pred_ratio", "0.75", "--no-norm_pix_loss"),
    "MI-MAE, independent masks": ("--mask_type", "independent", "--num_masks", "3"),
    "MI-MAE, mean latent, head": ("--latent_pool", "mean", "--mi_head", "mlp"),
    "MI-MAE, CLUB of tokens": ("--club_level", "token", "--club_floor", "none"),
    "MI-MAE, CLUB over the batch": ("--club_negatives", "batch", "--no_train_approximation"),
    "MI-MAE, uniformity": ("--lambda_uniformity", "0.1"),
    "MI-MAE, mask jitter": ("--mask_jitter", "0.4"),
    "MI-MAE, L_max alone": ("--lambda_min", "0"),
    "MI-MAE, L_min alone": ("--lambda_max", "0"),
    "four masks": ("--lambda_max", "0", "--lambda_min", "0"),
    "MI-MAE, checkpointed": ("--grad_checkpointing",),
    "MI-MAE, two micro-batches": ("--accum_iter", "2"),
    "MI-MAE, exact accumulation": ("--accum_iter", "2", "--exact_accum"),
}
CASES = [
    *(Case(name, pretraining, (*_TINY, "--mi_start_loss", "inf", *flags))
      for name, flags in _VARIANTS.items()),
    Case("MAE", pretraining, ("--model", "mae_vit_tiny_patch2")),
    Case("SimMIM, Swin", pretraining, (*_SWIN, "simmim_swin_mini_patch2")),
    Case("MI-SimMIM, Swin", pretraining, (*_SWIN, "misimmim_swin_mini_patch2")),
    Case("MI-SimMIM, ViT", pretraining,
         ("--input_size", "64", "--model", "misimmim_vit_base_patch16")),
    Case("MI-SimMIM, Swin, exact accumulation", pretraining,
         (*_SWIN, "misimmim_swin_mini_patch2", "--accum_iter", "2", "--exact_accum")),
    Case("fine-tuning, ViT", finetuning, _VIT),
    Case("fine-tuning, ViT, class token", finetuning,
         (*_VIT, "--cls_token", "--mixup_mode", "elem", "--grad_checkpointing")),
    Case("fine-tuning, Swin", finetuning, _MINI),
    Case("fine-tuning, BEiT, no mixup", finetuning, ("--mixup", "0", "--cutmix", "0"), _BEIT),
    Case("linear probe, ViT", probing, _VIT),
    Case("linear probe, Swin, SGD", probing, (*_MINI, "--optimizer", "sgd")),
    Case("segmentation, ViT", segmentation, _VIT),
    Case("segmentation, Swin", segmentation, _MINI),
    Case("detection, ViT", detection, _VIT, answers=_FOUR_MAPS),
    Case("detection, Swin", detection, _MINI, answers=_TWO_MAPS),
    Case("log step", monitors, _TINY, is_step=False),
    Case("classifying, ViT", classifying, _VIT[1:], is_step=False),
    Case("classifying, Swin", classifying, _MINI[1:], is_step=False),
    Case("frozen ViT", frozen, _VIT[1:], is_step=False),
    Case("frozen Swin", frozen, _MINI[1:], is_step=False),
    Case("logistic regression", regression, is_step=False, has_amps=False),
    Case("segmenting, windows, scales", segmenting,
         (*_VIT, "--test_scales", "0.5", "1", "--test_flip"), is_step=False),
    Case("segmenting, whole images", segmenting,
         (*_VIT, "--no-rel_pos_bias", "--test_mode", "whole"), is_step=False),
    Case("detecting, ViT", detecting, _VIT, is_step=False, answers=_FOUR_MAPS),
    Case("detecting, Swin", detecting, _MINI, is_step=False, answers=_TWO_MAPS),
]  # fmt: skip
