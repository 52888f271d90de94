"""A step of fine-tuning: main_finetune's, MAE's official engine's and that of timm's train.py.

All have a ViT with the mean of its patch tokens, mixup and cutmix, drop path, layer decay and
AdamW. Ours begins with uint8 images, which it normalises and erases in the step; the others' images
are floats, to which their workers have done that.
"""

import argparse
import contextlib
import io
import math
import pathlib
import sys
from functools import partial
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor

from benchmarks.peers.pairs import Entry, Pair, importing
from util.errors import UsageError

ROOT = str(pathlib.Path(__file__).resolve().parents[2])
CLASSES, SMOOTHING, DROP_PATH, LAYER_DECAY, WEIGHT_DECAY = 1000, 0.1, 0.1, 0.65, 0.05
MIXUP = dict(
    mixup_alpha=0.8, cutmix_alpha=1.0, cutmix_minmax=None, prob=1.0, switch_prob=0.5, mode="batch",
    label_smoothing=SMOOTHING, num_classes=CLASSES,
)  # fmt: skip
FULL = dict(model="vit_small_patch16", size=224, images=8)
TINY = dict(model="vit_nano_patch7", size=28, images=4)


def pairs(args: argparse.Namespace) -> list[Pair]:
    """Raises: UsageError: --mae is no clone of MAE's code."""
    work = SimpleNamespace(threads=args.threads, mae=args.mae, **(TINY if args.tiny else FULL))
    missing = "" if args.mae else "--mae FOLDER, a clone of https://github.com/facebookresearch/mae"
    if args.mae and not (pathlib.Path(args.mae) / "engine_finetune.py").is_file():
        raise UsageError(f"--mae {args.mae} has no engine_finetune.py: name a clone of MAE's code")
    title = f"Fine-tuning, {work.model}, {work.size} px, {work.images} images"
    in_full = Pair(f"{title}, fp32", "step", [
        Entry("ours", ours, (work, "none")),
        Entry("MAE's engine_finetune", official, (work,), 1.05, "its fused attention is today's "
              "timm's; its autocast is for GPUs only, so a CPU's step is fp32", missing=missing),
        Entry("timm's train.py", timm_step, (work, "none"), 1.05),
    ])  # fmt: skip
    in_half = Pair(f"{title}, bf16", "step", [
        Entry("ours, --amp bf16", ours, (work, "bf16")),
        Entry("timm's train.py, --amp --amp-dtype bfloat16", timm_step, (work, "bf16"), 1.05),
    ])  # fmt: skip
    return [in_full, in_half]


def batch(work: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """uint8 images [B, 3, H, W] and their classes [B]."""
    draw = torch.Generator().manual_seed(0)
    shape = (work.images, 3, work.size, work.size)
    imgs = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    return imgs, torch.randint(CLASSES, (work.images,), generator=draw)


def millions(model: torch.nn.Module) -> dict[str, str]:
    return {"parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M"}


def ours(work: SimpleNamespace, amp: str):
    """main_finetune's model, augmentation, optimiser and step."""
    with importing() as libraries:
        import timm  # noqa: F401

        import main_finetune
        from encoders.load import layer_lookup
        from engine_finetune import train_step
        from util.data.transforms import Normalize
        from util.training import optim
        from util.training.drop_path import DropPaths
        from util.training.precision import Precision

    torch.set_num_threads(work.threads)
    device = torch.device("cpu")
    words = ["--dataset", "image_folder", "--data_path", ".", "--model", work.model]
    own = main_finetune.parse_args([*words, "--input_size", str(work.size)])
    model = main_finetune.build_model(own, None, CLASSES).train()
    groups = optim.layer_decay_groups(model, WEIGHT_DECAY, layer_lookup(model), LAYER_DECAY)
    optimizer, precision = optim.adamw(groups), Precision(amp, device)
    drop_paths = DropPaths(model, own.seed)
    augment = main_finetune.build_augmentation(own, Normalize(own.mean, own.std), CLASSES)
    imgs, targets = batch(work)

    def train(num_steps: int) -> None:
        for step in range(num_steps):
            drop_paths.draw(step, 0, len(imgs), device)
            optim.set_lr(optimizer, 1e-6)
            inputs = augment(imgs, targets, step, 0)
            train_step(model, [inputs], 1, optimizer, precision)

    return train, libraries | millions(model)


def as_floats(work: SimpleNamespace) -> tuple[Tensor, Tensor]:
    imgs, targets = batch(work)
    return (imgs.float() / 255 - 0.45) / 0.225, targets


def timm_step(work: SimpleNamespace, amp: str):
    """The model, loss and optimiser that timm's train.py makes, and what it does in a step."""
    with importing() as libraries:
        import timm
        from timm.data import Mixup
        from timm.loss import SoftTargetCrossEntropy
        from timm.optim import create_optimizer_v2

    from encoders.vit import SIZES

    torch.set_num_threads(work.threads)
    options = dict(num_classes=CLASSES, drop_path_rate=DROP_PATH, global_pool="avg")
    model = timm.create_model(
        "vit_small_patch16_224", img_size=work.size, **SIZES[work.model], **options
    ).train()
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=1e-6, weight_decay=WEIGHT_DECAY, layer_decay=LAYER_DECAY
    )
    mixup, criterion = Mixup(**MIXUP), SoftTargetCrossEntropy()
    images, labels = as_floats(work)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16")

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            inputs, targets = mixup(images.clone(), labels)  # it mixes in place
            with autocast:
                loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return train, libraries | millions(model)


def stand_in(folder: str) -> None:
    """Make a clone of MAE's code importable, with today's libraries, in place of our modules."""
    for name in [name for name in sys.modules if name.split(".")[0] == "util"]:
        del sys.modules[name]  # its folder has the name of our package
    sys.path[:] = [folder] + [path for path in sys.path if path not in (ROOT, "")]
    sys.modules["torch._six"] = ModuleType("torch._six")
    sys.modules["torch._six"].inf = math.inf
    torch.cuda.synchronize = lambda: None


def official(work: SimpleNamespace):
    """The step of MAE's own engine, from its clone.

    Stood in for: what of torch it no longer finds, and the forward pass that timm had then, without
    a pooling after its own.
    """
    with importing() as libraries:
        from timm.data import Mixup
        from timm.loss import SoftTargetCrossEntropy

    from encoders.vit import SIZES

    torch.set_num_threads(work.threads)
    stand_in(work.mae)
    import models_vit
    from util.lr_decay import param_groups_lrd
    from util.misc import NativeScalerWithGradNormCount

    import engine_finetune

    model = models_vit.VisionTransformer(
        global_pool=True, img_size=work.size, num_classes=CLASSES, drop_path_rate=DROP_PATH,
        mlp_ratio=4, qkv_bias=True, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        **SIZES[work.model],
    )  # fmt: skip
    model.forward = lambda x: model.head(model.forward_features(x))
    groups = param_groups_lrd(model, WEIGHT_DECAY, model.no_weight_decay(), LAYER_DECAY)
    optimizer, scaler = torch.optim.AdamW(groups, lr=1e-6), NativeScalerWithGradNormCount()
    mixup, criterion = Mixup(**MIXUP), SoftTargetCrossEntropy()
    images, labels = as_floats(work)
    flags = SimpleNamespace(accum_iter=1, lr=1e-6, min_lr=0.0, warmup_epochs=1000, epochs=2000)

    def train(num_steps: int) -> None:
        loader = [(images.clone(), labels) for _ in range(num_steps)]
        with contextlib.redirect_stdout(io.StringIO()):
            engine_finetune.train_one_epoch(
                model, criterion, loader, optimizer, torch.device("cpu"), 1000, scaler, None,
                mixup, args=flags,
            )  # fmt: skip

    return train, libraries | millions(model)
