"""Speed and memory of a pre-training step, alone or against MAE's official code.

python benchmarks/pretrain_step.py --models base --images 2 --against ../mae

Each implementation trains by its own engine's step, in a process of its own, in turns with the
others, on the same work: MAE's code gets each image N times. It is imported from --against, a
clone of https://github.com/facebookresearch/mae; what of it no longer imports is stood in for, and
its precision is its own: fp16 on a GPU. The share of the peak counts what is computed, which with
--grad_checkpointing is more than what is needed.
"""

import argparse
import contextlib
import io
import math
import pathlib
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.contest import Contestant, hold, matmul_peak
from benchmarks.step_facts import add_timing_flags
from util.flags.parser import number
from util.training.precision import Precision

ROOT = sys.path[0]
MODELS = {
    "nano": "vit_nano_patch7",  # to try a benchmark
    "small": "vit_small_patch16", "base": "vit_base_patch16", "large": "vit_large_patch16",
    "huge": "vit_huge_patch14",
}  # fmt: skip
SMALLER = {  # than those of MAE's code
    "nano": dict(
        patch_size=7, embed_dim=64, depth=6, num_heads=2, decoder_embed_dim=64, decoder_depth=2,
        decoder_num_heads=4,
    ),
    "small": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
}  # fmt: skip
# What is found out about a model before it is trained; its second argument makes a forward pass.
Look = Callable[[nn.Module, Callable[[], dict[str, Tensor]]], dict[str, object]]


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--models", nargs="+", choices=MODELS, default=["base"])
    add("--images", nargs="+", type=number(int, 1), default=[2], help="images per step")
    add("--num_masks", type=number(int, 2), default=4, help="masks per image")
    add("--amp", choices=("auto", "bf16", "fp16", "none"), nargs="+", default=["auto"],
        help="ours, one contestant each")
    add("--compile", action="store_true", help="ours")
    add("--pred_ratio", type=float, default=1.0, help="time ours with it, too")
    add("--without_mi", action="store_true", help="time ours without the MI terms, too")
    add("--against", metavar="PATH", help="a clone of MAE's official code")
    # fmt: on
    add_timing_flags(add, steps=5)
    return parser


def use_device(args: argparse.Namespace) -> torch.device:
    """The GPU where there is one, else the CPU with `args.threads`."""
    torch.set_num_threads(args.threads)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def images_of(args: argparse.Namespace, images: int) -> Tensor:
    """So many random images [images, 3, H, W] of whole numbers up to 255."""
    shape = (images, 3, args.input_size, args.input_size)
    imgs = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return imgs.pin_memory() if torch.cuda.is_available() else imgs


def normalized(imgs: Tensor) -> Tensor:
    """Images of `images_of` as a loader gives them to others' models."""
    return (imgs.float() / 255 - 0.45) / 0.225


def precision_of(amp: str, device: torch.device) -> Precision:
    return Precision(amp, device, width=384)  # nearly all MODELS are at least so wide


def _count_flops(model: nn.Module, forward: Callable[[], dict[str, Tensor]]) -> dict[str, object]:
    """The FLOPs of a forward and backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        forward()["loss"].backward()
    model.zero_grad(set_to_none=True)
    return {"flops": counter.get_total_flops()}


def build_ours(
    args: argparse.Namespace, model: str, images: int, amp: str, *flags: str,
    look: Look = _count_flops,
):  # fmt: skip
    """This repository's training step, with `flags` of main_pretrain.py.

    Besides the step it gives what `look` finds, the dtype in which products are computed, and
    preflight's estimate of the memory in bytes.
    """
    import main_pretrain
    from engine_pretrain import step_noise, train_step
    from util.cluster import distributed
    from util.data.transforms import Normalize
    from util.training import optim, preflight

    device = use_device(args)
    words = ["--dataset", "flat", "--model", f"mimae_{MODELS[model]}", "--mi_start_loss", "inf"]
    words += ["--num_masks", str(args.num_masks), "--input_size", str(args.input_size)]
    words += ["--grad_checkpointing"] if args.grad_checkpointing else []
    own = main_pretrain.parse_args([*words, *flags])
    bare = main_pretrain.build_model(own).to(device)
    normalize = Normalize(own.mean, own.std).to(device)
    optimizer = optim.adamw(optim.decay_groups(bare, own.weight_decay), betas=own.betas)
    optim.set_lr(optimizer, 1e-6)
    precision = precision_of(amp, device)
    imgs = images_of(args, images)

    def forward() -> dict[str, Tensor]:
        with precision.autocast():
            return bare(normalize(imgs.to(device)))

    facts = look(bare, forward)
    if args.compile:
        distributed.compile_in_place(bare, args.grad_checkpointing)
    wrapped = distributed.wrap(bare, device, sync_buffers=False)

    def train(num_steps: int) -> None:
        shape = bare.masks.noise_shape(images * distributed.world_size())
        wrapped.train()
        for step in range(num_steps):
            noise = step_noise(shape, 1, 0, step, device)
            batch = [normalize(imgs.to(device, non_blocking=True))]
            train_step(wrapped, batch, noise, optimizer, precision)

    rows, is_half = images * bare.masks.num_masks, precision.dtype is not None
    memory = preflight.estimate_memory(
        bare, bare.block_shapes(), rows, is_half, args.grad_checkpointing
    )
    return train, facts | {"memory": sum(memory), "dtype": precision.dtype or torch.float32}


def _make_importable(clone: str, device: torch.device) -> None:
    """Let the files of MAE's clone be imported with today's libraries, in place of ours."""
    import numpy as np
    import timm.models.vision_transformer as timm_vit

    for name in [name for name in sys.modules if name.split(".")[0] == "util"]:
        del sys.modules[name]  # its folder has the name of our package
    sys.path[:] = [clone] + [path for path in sys.path if path != ROOT]
    np.float = float
    sys.modules["torch._six"] = ModuleType("torch._six")
    sys.modules["torch._six"].inf = math.inf
    block = timm_vit.Block
    timm_vit.Block = lambda *words, qk_scale=None, **options: block(*words, **options)
    if device.type == "cpu":
        torch.cuda.synchronize = lambda: None


def build_official(
    args: argparse.Namespace, model: str, images: int, amp: str = "none", look: Look | None = None
):
    """The training step of MAE's own engine, from its clone, with today's libraries.

    Args:
        amp: `bf16` is ours, for a CPU, where theirs computes in fp32.
    """
    device = use_device(args)
    _make_importable(args.against, device)
    from timm.optim import param_groups_weight_decay
    from util.misc import NativeScalerWithGradNormCount

    import engine_pretrain
    import models_mae

    torch.manual_seed(0)
    sizes = dict(img_size=args.input_size, norm_pix_loss=True)
    if model in SMALLER:  # theirs begin at base
        norm = partial(nn.LayerNorm, eps=1e-6)
        mae = models_mae.MaskedAutoencoderViT(**SMALLER[model], **sizes, norm_layer=norm)
    else:
        mae = getattr(models_mae, f"mae_{MODELS[model]}")(**sizes)
    mae = mae.to(device)
    if amp == "bf16":
        mae.forward = torch.autocast(device.type, torch.bfloat16)(mae.forward)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(mae, 0.05), 1e-6, betas=(0.9, 0.95))
    scaler = NativeScalerWithGradNormCount()
    imgs = normalized(images_of(args, images)).repeat_interleave(args.num_masks, 0)
    if device.type == "cuda":
        imgs = imgs.pin_memory()
    facts = look(mae, lambda: {"loss": mae(imgs.to(device))[0]}) if look else {}
    flags = SimpleNamespace(
        accum_iter=1, mask_ratio=0.75, lr=1e-6, min_lr=0.0, warmup_epochs=1000, epochs=2000
    )

    def train(num_steps: int) -> None:
        loader = [(imgs, None)] * num_steps
        with contextlib.redirect_stdout(io.StringIO()):
            engine_pretrain.train_one_epoch(
                mae, loader, optimizer, device, 1000, scaler, None, args=flags
            )

    return train, facts


def contest(args: argparse.Namespace, model: str, images: int) -> list[Contestant]:
    """All implementations of one size, timed, but for those that fail."""
    device = use_device(args)
    plans = []
    for amp in args.amp:
        own = precision_of(amp, device).name.replace("none", "fp32")
        plans.append((f"MI-MAE {own}", build_ours, amp))
        if args.without_mi:
            off = ("--lambda_max", "0", "--lambda_min", "0")
            plans.append((f"without MI terms {own}", build_ours, amp, *off))
        if args.pred_ratio < 1:
            part = ("--pred_ratio", str(args.pred_ratio))
            plans.append((f"pred_ratio {args.pred_ratio:g} {own}", build_ours, amp, *part))
    if args.against:
        theirs = "fp16" if device.type == "cuda" else "fp32"
        plans.append((f"official MAE {theirs}", build_official))
    named = [
        (f"{plan}, ViT-{model}, {images} x {args.num_masks}", build, args, model, images, *more)
        for plan, build, *more in plans
    ]
    return hold(named, args.rounds, args.steps)


def measure_peaks(peaks: dict[torch.dtype, float], device: torch.device) -> None:
    for dtype, peak in peaks.items():
        peaks[dtype] = max(peak, matmul_peak(device, dtype))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the contestants need it


def main() -> None:
    args = get_args_parser().parse_args()
    if args.against and not (pathlib.Path(args.against) / "models_mae.py").is_file():
        sys.exit(f"error: --against {args.against} has no models_mae.py: name a clone of it")
    device = use_device(args)
    dtypes = {precision_of(amp, device).dtype or torch.float32 for amp in args.amp}
    peaks = dict.fromkeys(dtypes, 0.0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(f"{name}{threads}, torch {torch.__version__}")
    heads = f"{'masked/s':>10s}{'ms/step':>10s}{'of peak':>9s}{'GiB':>8s}{'the first is':>14s}"
    print(f"{'':44s}{heads}")
    for model in args.models:
        for images in args.images:
            measure_peaks(peaks, device)  # before and after: a shared machine has slow moments
            found = contest(args, model, images)
            measure_peaks(peaks, device)
            for one in found:
                flops = one.facts.get("flops")
                share = f"{flops * one.rate / peaks[one.facts['dtype']]:.1%}" if flops else ""
                ratio = f"{found[0].ratio(one):.2f} x" if one is not found[0] else ""
                print(
                    f"{one.name:44s}{images * args.num_masks * one.rate:10.2f}"
                    f"{1000 / one.rate:10.1f}{share:>9s}{one.peak / 2**30:8.2f}{ratio:>14s}",
                    flush=True,
                )
    measured = ", ".join(f"{dtype} {peak / 1e12:.3g} TFLOP/s" for dtype, peak in peaks.items())
    print(f"measured peak of matrix products: {measured}")


if __name__ == "__main__":
    main()
