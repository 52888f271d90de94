"""Checkpoints of small models with random weights, of each kind, and the export command."""

import contextlib
import io
from functools import cache
from pathlib import Path

import torch
from mains import Outcome
from torch import nn

from encoders.load import build_encoder
from encoders.vit import Features, LinearProbe
from util.entry import run_main

CLASSES = ["bud", "leaf", "root"]


def randomize(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """All weights away from their initial zeros and ones, and BatchNorm's statistics, too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


def config_of(name: str, size, in_chans: int = 3, **more) -> dict:
    height, width = (size, size) if isinstance(size, int) else size
    return dict(
        model=name, input_size=[height, width], in_chans=in_chans, dataset="image_folder",
        mean=[0.1 * (i + 1) for i in range(in_chans)], std=[0.25] * in_chans,
    ) | more  # fmt: skip


def save(path: Path, model: nn.Module, config: dict, **flags) -> str:
    torch.save({"model": model.state_dict(), "config": config, "args": flags}, path)
    return str(path)


def pretrained(path: Path, name: str, size=8, in_chans=3, **options) -> str:
    """A checkpoint of pre-training, `name` as main_pretrain.py's --model."""
    import models_mae
    import models_mimae
    import models_simmim

    torch.manual_seed(0)
    models = models_mae.MODELS | models_mimae.MODELS | models_simmim.MODELS
    flags = dict(img_size=size, in_chans=in_chans) | options
    model = randomize(models[name](**flags))
    config = config_of(name, size, in_chans, patch_size=model.patch_size, grid=list(model.grid))
    told = {k: options[k] for k in ("mask_ratio", "norm_pix_loss") if k in options}
    return save(path, model, config, **told)


def classifier(path: Path, name: str, size=8, in_chans=3, pool=True, architecture=None) -> str:
    """A checkpoint of fine-tuning, with the mean of the patch tokens or the class token."""
    torch.manual_seed(0)
    options = dict(global_pool=pool, architecture=architecture)
    model = randomize(build_encoder(name, len(CLASSES), size, in_chans, **options))
    config = config_of(name, size, in_chans, grid=list(model.patch_embed.grid_size))
    config |= {"architecture": architecture} if architecture else {}
    return save(path, model, config | dict(classes=CLASSES))


def probe(path: Path, name: str, size=8, pool=False) -> str:
    torch.manual_seed(0)
    encoder = Features(build_encoder(name, 0, size, 3, pool))
    model = randomize(LinearProbe(encoder, encoder.vit.num_features, len(CLASSES)))
    return save(path, model, config_of(name, size))


def segmenter(path: Path, name: str, size, rel_pos_bias=False, layer_scale=0.0) -> str:
    from encoders.load import segmenter_architecture
    from heads.upernet import UperNet

    torch.manual_seed(0)
    found = segmenter_architecture(None, name, rel_pos_bias, layer_scale)
    encoder = build_encoder(name, 0, size, 3, False, architecture=found)
    encoder.norm = nn.Identity()
    model = randomize(UperNet(encoder, len(CLASSES), 16), 0.05)
    more = dict(first_class=0, palette=None, decoder_channels=16, classes=CLASSES)
    more |= dict(grid=list(encoder.patch_embed.grid_size), dataset="ade20k")
    more |= {"architecture": found} if found else {}
    return save(path, model, config_of(name, size, **more))


def detector(path: Path, name: str, size) -> str:
    from heads.maskrcnn import build_detector

    torch.manual_seed(0)
    encoder = build_encoder(name, 0, size, 3, False)
    encoder.norm = nn.Identity()
    model = randomize(build_detector(encoder, len(CLASSES), [0.5] * 3, [0.5] * 3, 2))
    more = dict(window=2, classes=CLASSES, category_ids=[1, 2, 3], dataset="coco")
    return save(
        path, model, config_of(name, size, grid=list(encoder.patch_embed.grid_size), **more)
    )


@cache
def _command():
    from tools import export

    return export


def export(checkpoint, out, to: str, *flags) -> Outcome:
    """Run the command inside the test process."""
    command, out_text, err, status = _command(), io.StringIO(), io.StringIO(), 0
    words = [str(checkpoint), str(out), "--to", to, *map(str, flags)]
    with contextlib.redirect_stdout(out_text), contextlib.redirect_stderr(err):
        try:
            run_main(command.main, lambda: command.parse_args(words))
        except SystemExit as end:
            status = end.code or 0
    return Outcome(status, out_text.getvalue(), err.getvalue(), Path(out))


def refused(outcome: Outcome, *words: str) -> None:
    """Status 2 and one line that has all the words."""
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1 and "Traceback" not in outcome.err, outcome.err
    assert all(word in outcome.err for word in words), outcome.err
