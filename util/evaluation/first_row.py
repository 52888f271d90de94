"""What the first token, mostly a class token, attends to: watched while a model runs."""

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FirstRow(TorchFunctionMode):
    """Watches fused attention and keeps the weights of its first query, the class token, of the
    last call: [B, heads, tokens]. Position biases, which come as a mask, are in them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: Tensor | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            self._keep(*args, **kwargs)
        return function(*args, **kwargs)

    def _keep(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_,
        scale: float | None = None, **__,
    ) -> None:  # fmt: skip
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        logits = (query[..., :1, :].float() @ key.float().mT) * scale  # [B, heads, 1, tokens]
        if attn_mask is not None:
            logits = logits + attn_mask[..., :1, :].float()
        self.weights = logits.softmax(-1)[..., 0, :]
