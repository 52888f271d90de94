"""Muon [Jordan et al., 2024] for the blocks' matrices, AdamW for all else, as one optimiser."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from util.errors import UsageError
from util.training.optim import adamw

BLOCKS = ("blocks.", "decoder_blocks.", "layers.")  # of a ViT, of MAE's decoder, of a Swin
QKV = ".attn.qkv"  # a layer that is three: each is orthogonalised by itself, as Muon's authors do


def new_optimizer(
    opt: str, model: nn.Module, groups: list[dict], betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """The optimiser of `--opt`; `set_lr` sets its learning rate before each step.

    Args:
        groups: of `optim.layer_decay_groups(model, …)`. betas: AdamW's.

    Raises:
        UsageError: muon on a torch that has none.
    """
    if opt == "adamw":
        return adamw(groups, betas)
    if not hasattr(torch.optim, "Muon"):
        raise UsageError(
            f"--opt muon needs torch 2.9 or newer, here {torch.__version__}: update torch, or "
            "leave --opt away"
        )
    return MuonAdamW(groups, hidden_matrices(model), betas)


def hidden_matrices(model: nn.Module) -> dict[Tensor, int]:
    """The weights of the linear layers in the blocks, and of how many layers each one is.

    Not among them: patch embedding, positions, tokens, norms, biases, tables of position biases,
    prediction, heads, and the approximation network, which is an input and an output layer and
    little between.
    """
    return {
        module.weight: 3 if name.endswith(QKV) else 1
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(BLOCKS)
    }


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for some parameters, fused AdamW for the others of the same groups.

    Muon's update is as large as AdamW's usually is, 0.2 for each weight in the root mean square
    (Liu et al., 2025, arXiv 2502.16982), so that learning rate, its schedule, layer decay and
    weight decay mean the same for both. State and groups are in the usual places.

    Args:
        groups: parameter groups; each becomes one for Muon, one for AdamW, or both.
        num_layers: Muon's parameters, and of how many equal layers each one is.
        betas: AdamW's.
    """

    def __init__(
        self, groups: list[dict], num_layers: Mapping[Tensor, int], betas: tuple[float, float]
    ):
        self.num_layers = num_layers
        hidden = _part(groups, lambda p: p in num_layers)
        others = _part(groups, lambda p: p not in num_layers)
        self.muon = torch.optim.Muon(hidden, lr=0.0, adjust_lr_fn="match_rms_adamw")
        self.adamw = adamw(others, betas)
        # The very dictionaries of the two, with all their settings.
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters that have a gradient. With loss scaling the scaler decides whether
        to call this, which waits for the device: Muon cannot be told not to."""
        hidden = [group for group in self.param_groups if _is_muons(group)]
        self.muon.state.clear()
        self.muon.param_groups = [g | dict(params=self._layers(g["params"])) for g in hidden]
        self.muon.step()
        self.muon.state.clear()  # views, which would keep each gradient until the next step
        self.muon.param_groups = []
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if not _is_muons(group)]
        self.adamw.step()

    def _layers(self, parameters: list[Tensor]) -> list[Tensor]:
        """The layers in Muon's parameters: views, with views of gradient and momentum."""
        layers = []
        for parameter in parameters:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            whole = parameter.detach(), parameter.grad, state["momentum_buffer"]
            parts = (tensor.chunk(self.num_layers[parameter]) for tensor in whole)
            for weight, weight.grad, momentum in zip(*parts, strict=True):
                self.muon.state[weight]["momentum_buffer"] = momentum
                layers.append(weight)
        return layers


def _part(groups: list[dict], is_in) -> list[dict]:
    parts = [group | dict(params=[p for p in group["params"] if is_in(p)]) for group in groups]
    return [part for part in parts if part["params"]]


def _is_muons(group: dict) -> bool:
    return "ns_steps" in group
