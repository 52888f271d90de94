"""The model card of an export, README.md: what is known of the checkpoint, and nothing else."""

import json
import os
from collections.abc import Mapping

from exports.folder import MANIFEST
from exports.result import Written
from exports.source import CLASSIFIER, DETECTOR, ENCODER, MAE, PROBE, SEGMENTER, SIMMIM_KIND, Source
from util.data.transforms import ResizeCenterCrop
from util.errors import UsageError
from util.flags.defaults import shown
from util.flags.settings import GIVEN
from util.provenance import commit, versions
from util.training.output import RESULTS
from util.weights.checkpoint_file import fingerprint

NAME = "README.md"
UNKNOWN = "not known: the file does not tell"
_TASKS = {
    CLASSIFIER: "image-classification", PROBE: "image-classification",
    SEGMENTER: "image-segmentation", DETECTOR: "object-detection",
}  # fmt: skip
# How a checkpoint's kind was tested by the main that wrote it.
_PROTOCOLS = {
    CLASSIFIER: "fine-tuned end to end by main_finetune.py; in percent, on the test images of the "
    "data above",
    PROBE: "a linear probe by main_linprobe.py on the frozen encoder; in percent, on the test "
    "images of the data above",
    SEGMENTER: "main_segmentation.py; in percent, on the validation images of the data above",
    DETECTOR: "main_detection.py; COCO's average precision in percent, on the validation images of "
    "the data above",
}
# What the lines of Python call `images`.
_TENSORS = "float tensors [batch, channels, height, width]"
_INPUTS = {
    "transformers": "pictures, of which the processor makes tensors [batch, channels, height, "
    "width]",
    "onnx": "float32 arrays [batch, channels, height, width]",
}
_PRETRAINED = (
    "losses and monitors of pre-training by main_pretrain.py, on the images that it was trained on"
)
_NOT_RESULTS = ("epoch", "steps", "train_grad_norm", "seconds", "command", "commit", "commits",
                "versions", "device", "processes", "flags", "flag_sources")  # fmt: skip


def write(source: Source, written: Written, folder: str, license_name: str, command: str) -> None:
    """Write README.md into an export's folder.

    Args:
        license_name: of the weights, as the user says; empty: it is unknown.
        command: by which they were exported.
    """
    name = str(source.pretrained.config.get("model") or source.args.model)
    parts = [
        _head(source, written, license_name),
        f"# {name} ({source.kind}), for {written.library}",
        "```python\n" + "\n".join(written.load) + "\n```",
        f"`images` are {_INPUTS.get(written.library, _TENSORS)}, made as the table says.",
        _table(_images(source)),
        "## Where it comes from",
        _table(_training(source)),
        "## Results",
        _results(source),
        "## The export",
        _table(_export(source, command)),
        _agreement(written),
    ]
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as file:
        file.write("\n\n".join(parts) + "\n")


def _head(source: Source, written: Written, license_name: str) -> str:
    lines = [
        f"license: {license_name or 'unknown'}",
        f"library_name: {written.library}",
        f"pipeline_tag: {_TASKS.get(source.kind, 'image-feature-extraction')}",
    ]
    return "---\n" + "\n".join(lines) + "\n---"


def _table(rows: Mapping[str, object]) -> str:
    lines = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _images(source: Source) -> dict[str, object]:
    height, width = source.input_size
    assumed = " (assumed: the file does not tell)" if source.is_assumed else ""
    rows = {
        "size": f"{height} x {width} pixels, {source.config['in_chans']} channel(s)",
        "mean": shown(source.config["mean"]) + assumed,
        "std": shown(source.config["std"]) + assumed,
        "values before that": _scale(source),
    }
    if source.kind != SEGMENTER:
        view = ResizeCenterCrop(source.input_size, source.crop_share)
        rows["test images"] = f"{view}, as this project evaluates"
    if source.classes and source.kind != ENCODER:
        rows["classes"] = f"{len(source.classes)}, named in {MANIFEST}"
    return rows


def _scale(source: Source) -> str:
    low, high = source.config.get("value_range") or (0, 1)
    return "in 0..1" if (low, high) == (0, 1) else f"{low:g} is 0, and {high:g} is 1"


def _training(source: Source) -> dict[str, object]:
    config, flags, run = source.pretrained.config, source.flags, source.run
    results = read_results(source)
    data = [str(config[key]) for key in ("dataset",) if config.get(key)]
    data += [f"{config['num_images']} images"] if config.get("num_images") else []
    progress, history = run.get("progress", {}), run.get("history", {})
    commits = history.get("commits") or ([results["commit"]] if "commit" in results else [])
    rows: dict[str, object] = {
        "command": f"`{results['command']}`" if "command" in results else UNKNOWN,
        "data": ", ".join(data) or UNKNOWN,
        "commit of the code": ", then ".join(commits) or UNKNOWN,
    }
    if progress:
        done = f"{progress.get('epoch')} epoch(s), {progress.get('total_steps')} step(s)"
        rows["trained for"] = done
    sources = run.get("flag_sources", {})
    given = [
        f"--{name} {shown(flags[name])}"
        for name, where in sources.items()
        if str(where).startswith(GIVEN) and name in flags
    ]
    if given and "command" not in results:
        rows["flags that were given"] = f"`{' '.join(given)}`"
    if source.whole_kind in (MAE, SIMMIM_KIND) and source.flags:
        names = ("mask_ratio", "num_masks", "norm_pix_loss", "lambda_max", "lambda_min")
        said = [f"{name} {shown(flags[name])}" for name in names if name in flags]
        rows["objective"] = ", ".join(said) or UNKNOWN
    return rows


def read_results(source: Source) -> dict:
    """What the run's results.json says, where it lies beside the checkpoint and is of its end."""
    folder = source.path if os.path.isdir(source.path) else os.path.dirname(source.path)
    try:
        with open(os.path.join(folder, RESULTS), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    steps = source.run.get("progress", {}).get("total_steps")
    is_own = isinstance(found, dict) and steps is not None and found.get("steps") == steps
    return found if is_own else {}


def _results(source: Source) -> str:
    found = read_results(source)
    numbers = {
        name: f"{value:.4g}"
        for name, value in found.items()
        if name not in _NOT_RESULTS and isinstance(value, int | float)
    }
    if not numbers:
        return f"Results are {UNKNOWN}."
    return f"Protocol: {_PROTOCOLS.get(source.whole_kind, _PRETRAINED)}.\n\n{_table(numbers)}"


def _export(source: Source, command: str) -> dict[str, object]:
    if os.path.isdir(source.path):
        checkpoint = f"folder `{os.path.basename(os.path.abspath(source.path))}`"
    else:
        checksum = fingerprint(source.path)
        checkpoint = f"`{os.path.basename(source.path)}`, checksum {checksum}"
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return {
        "from": f"{checkpoint}; its layout: {source.layout}",
        "by": f"`{command}`",
        "commit of this project": commit(),
        "versions": found,
        "files": f"{MANIFEST} lists them with their checksums",
    }


def _agreement(written: Written) -> str:
    lines = [f"- {note}" for note in written.notes]
    if written.differences:
        rows = {name: f"{value:.1e}" for name, value in written.differences.items()}
        told = "Largest difference from the checkpoint's model, on noise, as a share of the largest"
        lines.append(f"\n{told} value where that is above 1:\n\n{_table(rows)}")
    else:
        lines.append("- not compared with the checkpoint's model: its library is not installed")
    return "\n".join(lines)


def check_license(name: str) -> None:
    """Raise UsageError where a name is no single word."""
    if name and (len(name.split()) != 1 or not name.isprintable()):
        raise UsageError(f"--license {name!r} is no single word: use cc-by-nc-4.0, mit or others")
