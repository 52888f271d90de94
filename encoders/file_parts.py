"""Where a checkpoint keeps a model's weights: in which wrappers of data, and of modules."""

from collections.abc import Iterator

from torch import Tensor

# Where a file keeps its weights, the preferred first: trained weights before their running mean,
# and DINO's teacher before its student, as published.
WRAPPERS = (
    "model", "module", "state_dict", "model_state_dict", "teacher", "student", "model_ema",
    "state_dict_ema", "net", "network", "encoder", "backbone", "weights", "params",
)  # fmt: skip
# The end of the patch embedding's key; what stands before it is the prefix of the encoder's keys.
ANCHORS = (
    "patch_embed.proj.weight", "patch_embed.projection.weight",
    "embeddings.patch_embeddings.projection.weight", "conv_proj.weight",
)  # fmt: skip
# Parts of keys that torch.compile, DDP, FSDP and activation checkpointing add around any module.
MODULE_WRAPPERS = {
    "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
}  # fmt: skip
MAX_DEPTH = 10  # a damaged file may hold itself


def find_weights(state: dict) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a file's content, however nested, and its other places that hold some.

    The way leads to the encoder's patch embedding where there is one; else into what is known by
    name to wrap weights. Keys come without the names of wrapped modules.
    """
    set_aside = []
    for _ in range(MAX_DEPTH):
        place = _next_place(state)
        if place is None:
            break
        set_aside += [n for n in WRAPPERS if n != place and isinstance(state.get(n), dict)]
        state = state[place]
    found = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return {_plain(key): value for key, value in found.items()}, set_aside


def _next_place(state: dict) -> str | None:
    inner = [name for name in (*WRAPPERS, *state) if isinstance(state.get(name), dict)]
    with_encoder = [name for name in inner if any(map(_is_anchor, _tensor_keys(state[name])))]
    is_here = any(map(_is_anchor, state))
    for name in with_encoder:
        if name in WRAPPERS or not is_here:
            return name
    if is_here:
        return None
    return next((n for n in inner if n in WRAPPERS and any(_tensor_keys(state[n]))), None)


def _is_anchor(key: object) -> bool:
    return isinstance(key, str) and _plain(key).endswith(ANCHORS)


def _tensor_keys(state: dict, depth: int = 0) -> Iterator[str]:
    """The keys of the tensors in a dict, and in those inside it."""
    for key, value in state.items():
        if isinstance(value, Tensor) and isinstance(key, str):
            yield key
        elif isinstance(value, dict) and depth < MAX_DEPTH:
            yield from _tensor_keys(value, depth + 1)


def _plain(key: str) -> str:
    """`blocks.0._orig_mod.attn.qkv.weight` -> `blocks.0.attn.qkv.weight`."""
    return ".".join(part for part in key.split(".") if part not in MODULE_WRAPPERS)
