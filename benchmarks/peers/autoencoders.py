"""MAE as we and others build it, each with its training step, as `benchmarks.contest` wants it.

Sizes, masks and loss are the same: ours, from `models_mae.SIZES`, three quarters hidden, targets
normalised per patch. Ours and MAE's official code train by their own engine's step, with the
gradient's norm, images from bytes and all; the others, which are models without an engine, by the
least that trains: forward, backward, update, with the AdamW of their own example or trainer, on
images that are normalised already.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.peers.pairs import importing
from benchmarks.peers.same_work import work_of
from benchmarks.pretrain_step import (
    MODELS,
    build_official,
    build_ours,
    images_of,
    normalized,
    use_device,
)  # fmt: skip

MASK_RATIO = 0.75
DECODER = dict(decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)
LR = dict(lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)
Trained = tuple[Callable[[int], None], dict]  # what a contestant's process builds


def _sizes(args: argparse.Namespace) -> dict[str, int]:
    """Of the encoder and the decoder, by MAE's names."""
    from models_mae import SIZES

    return DECODER | SIZES[MODELS[args.model]]


def _with(args: argparse.Namespace, **values: object) -> argparse.Namespace:
    return argparse.Namespace(**vars(args) | values)


def _look(samples: int, optimizer: str, model: nn.Module, forward: Callable) -> dict[str, object]:
    """What MAE's code and ours, whose names are the same, do in a step."""
    return work_of(model, forward, model.decoder_pred, samples) | {"optimizer": optimizer}


def build_our_mae(args: argparse.Namespace, amp: str) -> Trained:
    """Our MAE, one mask for each image."""
    off = ("--model", f"mae_{MODELS[args.model]}", "--lambda_max", "0", "--lambda_min", "0")
    return _build_ours(_with(args, num_masks=1), args.samples, amp, *off)


def build_our_mimae(args: argparse.Namespace, amp: str) -> Trained:
    """MI-MAE: so many masks of fewer images, as many masked samples, and the MI losses."""
    return _build_ours(args, args.samples // args.num_masks, amp)


def _build_ours(args: argparse.Namespace, images: int, amp: str, *flags: str) -> Trained:
    with importing() as libraries:
        import timm.models.vision_transformer  # noqa: F401

        import main_pretrain  # noqa: F401

    look = partial(_look, args.samples, "fused")
    train, facts = build_ours(args, args.model, images, amp, *flags, look=look)
    return train, facts | libraries | {"dtype": str(facts["dtype"])}


def build_official_mae(args: argparse.Namespace, amp: str) -> Trained:
    """MAE's official code, from its clone."""
    with importing() as libraries:
        import timm.models.vision_transformer  # noqa: F401

    args, look = _with(args, num_masks=1), partial(_look, args.samples, "plain")
    train, facts = build_official(args, args.model, args.samples, amp, look)
    return train, facts | libraries


def build_transformers(args: argparse.Namespace, amp: str) -> Trained:
    """`ViTMAEForPreTraining`; its Trainer's AdamW is fused."""
    with importing() as libraries:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

    size = _sizes(args)
    config = ViTMAEConfig(
        image_size=args.input_size, patch_size=size["patch_size"], mask_ratio=MASK_RATIO,
        hidden_size=size["embed_dim"], intermediate_size=4 * size["embed_dim"],
        num_hidden_layers=size["depth"], num_attention_heads=size["num_heads"],
        decoder_hidden_size=size["decoder_embed_dim"],
        decoder_intermediate_size=4 * size["decoder_embed_dim"],
        decoder_num_hidden_layers=size["decoder_depth"],
        decoder_num_attention_heads=size["decoder_num_heads"],
        layer_norm_eps=1e-6, norm_pix_loss=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTMAEForPreTraining(config)

    def loss(imgs: Tensor) -> Tensor:
        return model(imgs).loss

    return _trained(args, amp, model, loss, model.decoder.decoder_pred, True, libraries)


class LightlyMAE(nn.Module):
    """MAE of lightly's blocks, as its benchmark puts them together, with the normalised targets
    that it leaves out."""

    def __init__(self, size: dict[str, int], img_size: int):
        from lightly.models import modules

        super().__init__()
        vit = _timm_vit(size, img_size)
        width, self.patch_size = size["decoder_embed_dim"], size["patch_size"]
        self.encoder = modules.MaskedVisionTransformerTIMM(vit=vit)
        self.num_tokens = self.encoder.sequence_length
        self.decoder_embed = nn.Linear(size["embed_dim"], width)
        self.decoder = modules.MaskedVisionTransformerDecoderTIMM(
            num_patches=vit.patch_embed.num_patches, embed_dim=width,
            depth=size["decoder_depth"], num_heads=size["decoder_num_heads"],
        )  # fmt: skip
        self.predict = nn.Linear(width, 3 * self.patch_size**2)

    def forward(self, imgs: Tensor) -> Tensor:
        """imgs [B, 3, H, W] -> L_rec."""
        from lightly.models import utils

        tokens = (len(imgs), self.num_tokens)
        keep, hidden = utils.random_token_mask(tokens, MASK_RATIO, device=imgs.device)
        seen = self.decoder_embed(self.encoder.encode(images=imgs, idx_keep=keep))
        every = utils.set_at_index(seen.new_zeros(*tokens, seen.shape[-1]), keep, seen)
        decoded = self.decoder(every, idx_mask=hidden)  # [B, 1 + L, ·]
        predicted = self.predict(utils.get_at_index(decoded, hidden))
        target = utils.get_at_index(utils.patchify(imgs, self.patch_size), hidden - 1)
        return nn.functional.mse_loss(predicted.float(), utils.normalize_mean_var(target))


def _timm_vit(size: dict[str, int], img_size: int) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    shape = {name: size[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")}
    return VisionTransformer(img_size=img_size, num_classes=0, **shape)


def build_lightly(args: argparse.Namespace, amp: str) -> Trained:
    """lightly's blocks; its benchmark's AdamW is torch's default."""
    with importing() as libraries:
        import timm.models.vision_transformer  # noqa: F401
        from lightly.models import modules, utils  # noqa: F401

    torch.manual_seed(0)
    model = LightlyMAE(_sizes(args), args.input_size)
    return _trained(args, amp, model, model, model.predict, False, libraries)


def build_stable(args: argparse.Namespace, amp: str) -> Trained:
    """stable-pretraining's MAE; its example's AdamW is torch's default."""
    with importing() as libraries:
        from stable_pretraining.methods import MAE

    size = _sizes(args)
    torch.manual_seed(0)
    decoder = {name: size[name] for name in DECODER}
    model = MAE(_timm_vit(size, args.input_size), **decoder, mask_ratio=MASK_RATIO)

    def loss(imgs: Tensor) -> Tensor:
        return model(imgs).loss

    predict = model.decoder.transformer.output_proj
    return _trained(args, amp, model, loss, predict, False, libraries)


def _trained(
    args: argparse.Namespace, amp: str, model: nn.Module, loss: Callable[[Tensor], Tensor],
    predict: nn.Linear, fused: bool, libraries: dict[str, int],
) -> Trained:  # fmt: skip
    """A step of a model that has no engine: forward, backward, update."""
    device = use_device(args)
    model.to(device).train()
    imgs = normalized(images_of(args, args.samples)).to(device)
    fused = fused or args.fused
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **LR, fused=fused or None)

    def forward() -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16"):
            return {"loss": loss(imgs)}

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            forward()["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

    facts = work_of(model, forward, predict, args.samples)
    return train, facts | libraries | {"optimizer": "fused" if fused else "plain"}
