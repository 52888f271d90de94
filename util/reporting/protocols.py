"""By which protocol a main's numbers are measured, in a sentence with the run's own flags.

`docs/protocols.md` has the whole of it, and what published protocols do otherwise.
"""

import os
from collections.abc import Mapping

from util.reporting.run_folder import RunFolder

PROTOCOLS = {
    "main_pretrain": "Losses are means over the last epoch's training images, with the masks and "
    "crops of training. k-NN, where asked for: the class token, cosine, 20 neighbours, on the test "
    "images of {dataset}.",
    "main_finetune": "All test images of {dataset} at {input_size} pixels, resized and cut out at "
    "the centre, each seen once; the weights after the last epoch.",
    "main_linprobe": "All test images of {dataset} at {input_size} pixels, resized and cut out at "
    "the centre, each seen once; the encoder is frozen, the probe is the last epoch's.",
    "main_segmentation": "The validation images, test mode {test_mode}, views of scale "
    "{test_scales}, mirrored views too: {test_flip}; IoU over all images, mean over classes.",
    "main_detection": "The validation images in a canvas of {input_size} pixels; COCO's average "
    "precision over IoU 0.5 to 0.95, at most 100 objects an image.",
    "main_evaluate": "Frozen features; what is chosen is chosen on a tenth of the training set. "
    "The tables below say how each number is found.",
    "main_robustness": "Every test set by its published protocol, as the tables below say.",
}


def protocol_of(run: RunFolder, flags: Mapping[str, str]) -> str:
    """The sentence for a run's final numbers; empty where its main or a flag is not known.

    Args:
        flags: values as text, by name.
    """
    told = run.results.get("command") or run.about.get("command") or ""
    words = str(told).split()
    main = os.path.basename(words[1]).removesuffix(".py") if len(words) > 1 else ""
    try:
        return PROTOCOLS[main].format_map(flags)
    except KeyError:
        return ""
