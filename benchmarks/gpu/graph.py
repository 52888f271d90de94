"""A training step as one CUDA graph: what is left to gain where launching kernels takes the time.

Not how the mains train: what a step draws and loads would have to be copied into the graph's
tensors, as here.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.pretrain_step import MODELS, precision_of
from util.training import optim

WARM_UP = 3


def graphed(
    args: argparse.Namespace, model: str, images: int, amp: str
) -> tuple[Callable[[int], None], dict]:
    """Forward and backward pass and update of MI-MAE, captured; bf16 or fp32, with no loss scale.

    Raises:
        RuntimeError: something in the step cannot be captured.
    """
    import main_pretrain

    device = torch.device("cuda", 0)
    flags = ["--dataset", "flat", "--model", f"mimae_{MODELS[model]}", "--mi_start_loss", "inf"]
    own = main_pretrain.parse_args([*flags, "--input_size", str(args.input_size)])
    net = main_pretrain.build_model(own).to(device).train()
    net.mean_patch.has_begun, net.mean_patch.is_learning = True, False
    optimizer = optim.adamw(optim.decay_groups(net, own.weight_decay), betas=own.betas)
    for group in optimizer.param_groups:
        group |= {"lr": 1e-6, "capturable": True}
    precision = precision_of(amp, device)
    if precision.scaler.is_enabled():
        raise RuntimeError("loss scaling is not captured: this device takes fp16")
    imgs = torch.randn(images, 3, args.input_size, args.input_size, device=device)
    noise = torch.rand(net.masks.noise_shape(images), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast():
            loss = net(imgs, noise)["loss"]
        loss.backward()
        optimizer.step()

    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def train(num_steps: int) -> None:
        for _ in range(num_steps):
            imgs.normal_()
            noise.uniform_()
            graph.replay()

    return train, {"flops": 0, "memory": 0, "dtype": None}
