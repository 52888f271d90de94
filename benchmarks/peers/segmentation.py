"""A step of UperNet: main_segmentation's and transformers' UperNetForSemanticSegmentation.

Both on a plain ViT with BEiT's four rescaled maps, the auxiliary head and the loss at the label
maps' size. transformers' has no dropout before its classifiers, and its lateral convolutions have
BatchNorm as ours do; of a BEiT, which it takes for a backbone, all that a ViT has not is off.
"""

import argparse
from types import SimpleNamespace

import torch

from benchmarks.peers.finetune import millions
from benchmarks.peers.pairs import Entry, Pair, importing

FULL = dict(model="vit_small_patch16", input_size=256, images=2, classes=150)
TINY = dict(model="vit_nano_patch2", input_size=32, images=2, classes=5)


def pairs(args: argparse.Namespace) -> list[Pair]:
    sizes = TINY if args.tiny else FULL
    work = SimpleNamespace(threads=args.threads, grad_checkpointing=False, **sizes)
    note = "its BEiT has no bias of keys, and its heads no dropout; AdamW and clipping as its " \
        "Trainer has them"  # fmt: skip
    title = f"UperNet on {work.model}, {work.input_size} px, {work.images} crops, fp32"
    return [Pair(title, "step", [
        Entry("ours", ours, (work,), needs=("segmentation_models_pytorch",)),
        Entry("transformers", transformers_step, (work,), 1.0, note, ("transformers",)),
    ])]  # fmt: skip


def batch(work: SimpleNamespace):
    """Images [B, 3, H, W] and label maps [B, H, W]."""
    draw = torch.Generator().manual_seed(0)
    size = (work.images, work.input_size, work.input_size)
    return torch.randn(size[0], 3, *size[1:], generator=draw), torch.randint(
        work.classes, size, generator=draw
    )


def ours(work: SimpleNamespace):
    """main_segmentation's model, optimiser and step."""
    with importing() as libraries:
        import segmentation_models_pytorch  # noqa: F401

        import main_segmentation
        from benchmarks.step_facts import as_main_trains
        from engine_segmentation import train_step
        from heads.upernet import UperNet  # noqa: F401

    own = as_main_trains(main_segmentation, work, "none")
    imgs, maps = batch(work)

    def train(num_steps: int) -> None:
        for step in range(num_steps):
            own.drop_paths.draw(step, 0, len(imgs), own.device)
            train_step(own.model, [(imgs, maps)], 1, own.optimizer, own.precision)

    return train, libraries | millions(own.model)


def transformers_step(work: SimpleNamespace):
    """The model of the same sizes, and a step as transformers' Trainer makes it."""
    with importing() as libraries:
        from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

    from encoders.vit import SIZES
    from heads.upernet import AUXILIARY_CHANNELS, quarter_blocks

    torch.set_num_threads(work.threads)
    size = SIZES[work.model]
    width, depth = size["embed_dim"], size["depth"]
    backbone = BeitConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=size["num_heads"],
        intermediate_size=4 * width, image_size=work.input_size, patch_size=size["patch_size"],
        use_absolute_position_embeddings=True, layer_scale_init_value=0.0, drop_path_rate=0.1,
        add_fpn=True, out_indices=[number + 1 for number in quarter_blocks(depth)],
    )  # fmt: skip
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=width, auxiliary_in_channels=width,
        auxiliary_channels=min(width, AUXILIARY_CHANNELS), num_labels=work.classes,
    )  # fmt: skip
    model = UperNetForSemanticSegmentation(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.05, fused=True)
    imgs, maps = batch(work)

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            model(pixel_values=imgs, labels=maps).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return train, libraries | millions(model)
