"""Models for torch.hub, from a folder that holds this project:

    model = torch.hub.load("mi-mae", "vit_base_patch16", source="local", checkpoint="last.pth")
    tokens = model.forward_features(images)  # [B, 1 + L, D]; images as model.pretrained_cfg says

One entry for each pre-training model, as `main_pretrain.py --model` has them (`mae_…`, `mimae_…`,
`simmim_…`, `misimmim_…`), one for each encoder (`vit_…`, `swin_…`), and `encoder`, which is what a
checkpoint holds. Checkpoints are read as data: nothing of them runs.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from torch import nn

dependencies = ["torch", "torchvision", "timm", "numpy", "PIL"]

FOLDER = Path(__file__).resolve().parent
# The names under which this project imports its own: another one may have a `util`, too.
NAMES = {p.stem for p in FOLDER.glob("*.py")} | {
    p.parent.name for p in FOLDER.glob("*/__init__.py")
}
NAMES -= {"hubconf"}
_own: dict[str, ModuleType] = {}  # this project's modules, while others may hold their names


def _named() -> dict[str, ModuleType]:
    return {name: m for name, m in sys.modules.items() if name.partition(".")[0] in NAMES}


def _is_own(module: ModuleType) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place and Path(place).resolve().is_relative_to(FOLDER) for place in places)


@contextlib.contextmanager
def own_modules() -> Iterator[None]:
    """This project's modules under their names; then sys.path and the names are as they were."""
    before, path = _named(), sys.path[:]
    are_own = bool(before) and all(map(_is_own, before.values()))
    if not are_own:
        for name in before:
            del sys.modules[name]
        sys.modules.update(_own)
    sys.path.insert(0, str(FOLDER))
    try:
        yield
    finally:
        sys.path[:] = path
        if not are_own:
            _own.update(_named())
            for name in _named():
                del sys.modules[name]
            sys.modules.update(before)


with own_modules():
    import main_pretrain
    from encoders import load
    from encoders.vit import Pretrained
    from util.errors import UsageError


def _pretraining_model(name: str, checkpoint: str | None = None, **options) -> nn.Module:
    """Build a pre-training model: its `forward(images)` gives losses, `encode(images)` tokens.

    Args:
        checkpoint: of this model, by this project, MAE or SimMIM; None: initial weights.
        options: the model's own, as `img_size`, `in_chans`, `norm_pix_loss`, `num_masks`; by
            default those of the checkpoint's run, else the model's.

    Raises:
        ValueError: a file that cannot be read or is refused, or is of another architecture.
    """
    if checkpoint is None:
        return main_pretrain.MODELS[name](**options)
    return main_pretrain.restored(Pretrained(str(checkpoint)), name, **options)


def _encoder(
    name: str | None, checkpoint: str | None = None, img_size: int | list[int] | None = None,
    in_chans: int | None = None, num_classes: int = 0, global_pool: bool | None = None,
    num_heads: int | None = None,
) -> nn.Module:  # fmt: skip
    """Build an encoder as timm has it: images -> features [B, D], or logits with `num_classes`.

    `pretrained_cfg` has its images' mean, std and size, as timm's transforms read them.

    Args:
        checkpoint: of any layout in encoders/layouts.py; None: initial weights.
        img_size, in_chans: by default the checkpoint's, else 224 and 3.
        num_classes: of a new head; 0: none. global_pool: classify the mean of the patch tokens; by
            default only where the checkpoint does. num_heads: where its file does not tell.

    Raises:
        ValueError: a file that cannot be read or is refused, or holds another encoder.
    """
    found = Pretrained(str(checkpoint), num_heads) if checkpoint is not None else None
    held = load.model_name(found) if found else name
    if held is None:
        raise UsageError("encoder needs a checkpoint: it is the encoder that one holds")
    if name not in (None, held):
        raise UsageError(f"{checkpoint} holds a {held}, not a {name}: use the entry of that name")
    told = found.encoder_config() if found else {}
    size, chans = img_size or told.get("input_size") or 224, in_chans or told.get("in_chans") or 3
    if global_pool is None:
        global_pool = found is not None and "fc_norm.weight" in found.weights
    model = load.build_encoder(
        held, num_classes, size, chans, global_pool, architecture=load.architecture(found, held)
    )
    if found:
        load.load_pretrained(found, model)
    mean, std = (told.get(key) for key in ("mean", "std"))
    height, width = model.patch_embed.img_size
    model.pretrained_cfg = dict(
        input_size=(chans, height, width), interpolation="bicubic", num_classes=num_classes,
        **({"mean": tuple(mean), "std": tuple(std)} if mean and std else {}),
    )  # fmt: skip
    return model.eval() if num_classes == 0 else model


def _entry(build: Callable[..., nn.Module], name: str | None) -> Callable[..., nn.Module]:
    def entry(checkpoint: str | None = None, **options) -> nn.Module:
        with own_modules():
            try:
                return build(name, checkpoint, **options)
            except UsageError as error:  # of which programs say it is a flag's
                raise UsageError(str(error).replace("--finetune ", "")) from None

    entry.__name__, entry.__doc__ = name or "encoder", build.__doc__
    return entry


encoder = _entry(_encoder, None)
globals().update({name: _entry(_encoder, name) for name in load.SIZES})
globals().update({name: _entry(_pretraining_model, name) for name in main_pretrain.MODELS})
