"""What a masked autoencoder computes in a step, whoever wrote it: found by looking at one."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.gpu.record import Rows
from benchmarks.step_facts import step_facts

Blocks = dict[int, tuple[int, int]]  # by width: tokens of a sample, and so many blocks


def work_of(
    model: nn.Module, forward: Callable[[], dict[str, Tensor]], predict: nn.Linear, samples: int
) -> dict[str, object]:
    """What a forward and backward pass is made of; the weights are afterwards what they were.

    Args:
        forward: a pass -> `loss`, and `rec`, its part that is of pixels, where there is more.
        predict: the layer that predicts pixels. samples: masked images of a pass.

    Returns:
        `step_facts`, and `trained` parameters; `blocks` by their width, from the norms: two of a
        block and one after the last; `rows`, the predicted patches of a sample that the loss
        moves; `of_zeros`, the loss of predicting zeros everywhere: (P − 1) / P for P pixels of a
        patch where targets are normalised per patch with the unbiased variance.
    """
    tokens: dict[int, list[int]] = {}
    gradients: list[Tensor] = []

    def note_tokens(norm: nn.LayerNorm, inputs: tuple[Tensor, ...], _) -> None:
        tokens.setdefault(inputs[0].shape[-1], []).append(inputs[0].shape[1])

    def note_gradient(_, __, output: Tensor) -> None:
        output.register_hook(gradients.append)

    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_hook(note_tokens) for norm in norms]
    hooks.append(predict.register_forward_hook(note_gradient))
    kept = [p.detach().clone() for p in predict.parameters()]
    with torch.no_grad():
        for parameter in predict.parameters():
            parameter.zero_()
    losses = forward()
    loss = losses.get("rec", losses["loss"])
    loss.backward()
    model.zero_grad(set_to_none=True)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for parameter, values in zip(predict.parameters(), kept, strict=True):
            parameter.copy_(values)
    moved = sum(int(gradient.flatten(0, -2).any(-1).sum()) for gradient in gradients)
    return step_facts(model, lambda: forward()["loss"]) | {
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "blocks": {width: (max(seen), len(seen) // 2) for width, seen in tokens.items()},
        "rows": moved / samples,
        "of_zeros": loss.item(),
    }


def differences(facts: dict, ours: dict) -> list[str]:
    """In words, what of the work is not ours; nothing where it is the same."""
    found = []
    for width, (seen, depth) in ours["blocks"].items():
        theirs = facts["blocks"].get(width, (0, 0))
        if theirs[0] != seen:
            found.append(f"{theirs[0]} tokens of {width}, ours {seen}")
        if theirs[1] != depth:
            found.append(f"{theirs[1]} blocks of {width}, ours {depth}")
    if facts["rows"] != ours["rows"]:
        found.append(f"{facts['rows']:g} patches in the loss, ours {ours['rows']:g}")
    if abs(facts["of_zeros"] - ours["of_zeros"]) > 1e-3:
        found.append(f"a loss of {facts['of_zeros']:.4f} for zeros, ours {ours['of_zeros']:.4f}")
    for kind in ("parameters", "trained"):
        if facts[kind] != ours[kind]:
            found.append(f"{facts[kind] - ours[kind]:+d} {kind}")
    return found


def table_of_work(named: dict[str, dict], samples: int) -> Rows:
    """A row of each contestant's facts, by its name; the first is ours."""
    ours = next(iter(named.values()), {})
    return [
        {
            "": name,
            "parameters": facts["parameters"],
            "trained": facts["trained"],
            "blocks": "; ".join(
                f"{depth} of {width}, {tokens} tokens"
                for width, (tokens, depth) in facts["blocks"].items()
            ),
            "patches in the loss": f"{facts['rows']:g}",
            "loss of zeros": f"{facts['of_zeros']:.4f}",
            "GFLOP per sample": f"{facts['flops'] / samples / 1e9:.4g}",
            "MiB kept per sample": f"{facts['kept'] / samples / 2**20:.3g}",
            "AdamW": facts["optimizer"],
            "differs": "; ".join(differences(facts, ours)) or "no",
        }
        for name, facts in named.items()
    ]
