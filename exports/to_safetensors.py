"""A checkpoint as a safetensors file under this project's names, which are MAE's and timm's.

Every main reads the folder where it reads a checkpoint, and nothing of it is unpickled. Decoder
and head come with it; the state of the optimiser does not.
"""

import os

from exports.folder import write_json, write_tensors
from exports.result import Written, check, difference
from exports.source import Source
from util.errors import UsageError

# What a pre-trained model's loss needs, of its run's flags or its configuration.
_FLAGS = ("mask_ratio", "norm_pix_loss", "num_masks", "decoder_num_attention_heads")


def write(source: Source, folder: str) -> Written:
    """Write `model.safetensors` and, for `encoders.layouts.open_encoder`, `config.json`."""
    if source.kind != source.whole_kind or list(source.input_size) != list(
        source.trained_size or source.input_size
    ):
        raise UsageError(
            "--to safetensors keeps a checkpoint as it is: leave --encoder_only and --input_size "
            "away"
        )
    config = dict(source.config)
    config |= {"classes": source.classes} if source.classes else {}
    if source.pretrained.is_ours:
        weights = source.raw
        config["model"] = source.pretrained.config["model"]
        config["input_size"] = source.trained_size
    else:
        weights = source.weights
        config["architecture"] = source.pretrained.architecture()
        config["input_size"] = source.trained_size or config["input_size"]
        grid = source.pretrained.foreign.grid()
        config |= {"grid": list(grid[1])} if grid else {}
    flags = {n: source.pretraining(n, None) for n in _FLAGS}
    config |= {n: value for n, value in flags.items() if value is not None}
    write_json(os.path.join(folder, "config.json"), config)
    write_tensors(folder, weights)
    lines = [
        "from safetensors.torch import load_file",
        "weights = load_file('OUT/model.safetensors')",
        "# and, in this project: python main_finetune.py --finetune OUT",
    ]
    again = Source(folder)
    if (again.whole_kind, again.raw.keys()) != (source.whole_kind, weights.keys()):
        raise UsageError(
            f"--to safetensors: this project reads it as {again.whole_kind}, and not as "
            f"{source.whole_kind}: it is not written"
        )
    found = max(difference(again.raw[key], value) for key, value in weights.items())
    written = Written("safetensors", lines, {"weights": found})
    check("safetensors", written.differences)
    return written
