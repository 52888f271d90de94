"""What a run's numbers are: their titles, units and meaning, in the order in which they are read.

A name that is not listed has itself for a title.
"""

from dataclasses import dataclass

LOSSES, OPTIMISATION, MONITORS = "Losses", "Optimisation", "Monitors"
SCORES, SPEED, OTHERS = "Scores", "Speed and memory", "Others"
GROUPS = (LOSSES, SCORES, MONITORS, OPTIMISATION, SPEED, OTHERS)


@dataclass(frozen=True)
class Quantity:
    """Title, unit and meaning of a number; whether its curve may have a log scale."""

    title: str
    unit: str = ""
    group: str = OTHERS
    meaning: str = ""
    may_be_log: bool = False
    is_hidden: bool = False


def _loss(title: str, unit: str, meaning: str) -> Quantity:
    return Quantity(title, unit, LOSSES, meaning, may_be_log=True)


_LAST = "of the test images, after the last epoch"
_BEST = "the best of all epochs, chosen by the test images themselves: it flatters"
KNOWN = {
    "loss": _loss("Loss", "", "the sum that is minimised"),
    "rec": _loss("Reconstruction L_rec", "per pixel", "of the masked patches [Eq. 1]"),
    "mean_patch": _loss("L_rec of the mean patch", "per pixel",
                        "what predicting the data's mean patch costs: a bound to beat"),
    "max_mi": _loss("L_max", "nats", "InfoNCE between the masks of an image"),
    "min_mi": _loss("L_min", "nats", "CLUB's bound, of what is peculiar to a mask"),
    "apx": _loss("L_apx", "nats", "of the approximation network"),
    "uniformity": _loss("Uniformity", "", "mean squared cosine of different images' latents"),
    "main": _loss("Loss of the main head", "nats", "cross entropy of pixels"),
    "auxiliary": _loss("Loss of the auxiliary head", "nats", "cross entropy of pixels"),
    "classifier": _loss("Classes of boxes", "nats", "of Mask R-CNN"),
    "box_reg": _loss("Places of boxes", "", "of Mask R-CNN"),
    "mask": _loss("Masks", "nats", "of Mask R-CNN"),
    "objectness": _loss("Objectness of proposals", "nats", "of Mask R-CNN"),
    "rpn_box_reg": _loss("Places of proposals", "", "of Mask R-CNN"),
    "test_loss": _loss("Loss of the test images", "nats", "cross entropy, mean"),
    "test_acc1": Quantity("Top-1 accuracy", "%", SCORES, _LAST),
    "test_acc5": Quantity("Top-5 accuracy", "%", SCORES, _LAST),
    "max_acc1": Quantity("Best top-1 accuracy", "%", SCORES, _BEST),
    "test_acc1_std": Quantity("Its standard deviation", "%", SCORES, "over draws and seeds"),
    "knn_acc1": Quantity("k-NN accuracy", "%", SCORES,
                         "of the test images, by their nearest training images; nothing is fitted"),
    "test_mIoU": Quantity("Mean IoU", "%", SCORES, "over the classes of the validation images"),
    "max_mIoU": Quantity("Best mean IoU", "%", SCORES, _BEST),
    "test_aAcc": Quantity("Pixel accuracy", "%", SCORES, "of all labelled pixels"),
    "test_mAcc": Quantity("Mean class accuracy", "%", SCORES, "of labelled pixels, by class"),
    "acc": Quantity("Pixel accuracy in training", "%", MONITORS, "of labelled pixels of crops"),
    "test_box_AP": Quantity("Box AP", "%", SCORES, "COCO's, over IoU 0.5 to 0.95"),
    "test_mask_AP": Quantity("Mask AP", "%", SCORES, "COCO's, over IoU 0.5 to 0.95"),
    "max_box_AP": Quantity("Best box AP", "%", SCORES, _BEST),
    "explained": Quantity("Explained", "share", MONITORS,
                          "1 − L_rec / L_rec of the mean patch; 0: nothing is learnt of images"),
    "image_share": Quantity("Image share", "share", MONITORS,
                            "the latents' variance over images, of their mean squared length; 0: "
                            "all images have the same"),
    "rank": Quantity("Effective rank", "dimensions", MONITORS, "of the latents of a batch"),
    "mi_losses": Quantity("Gate", "0 or 1", MONITORS, "1: the MI losses count (Assumption 3)"),
    "min_mi_followed": Quantity("L_min is followed", "share of steps", MONITORS,
                                "in which its estimate moves the encoder"),
    "info_nce_accuracy": Quantity("InfoNCE accuracy", "share", MONITORS,
                                  "of latents nearest to another mask of their image"),
    "monitor_effective_rank": Quantity("Effective rank, same images", "dimensions", MONITORS,
                                       "of the class tokens of whole images"),
    "monitor_RankMe": Quantity("RankMe, same images", "dimensions", MONITORS, "not centred"),
    "monitor_alignment_of_masks": Quantity("Alignment", "", MONITORS,
                                           "mean squared distance of unit latents of two masks of "
                                           "an image; 0: the mask does not matter"),
    "monitor_uniformity": Quantity("Uniformity of images", "", MONITORS,
                                   "log mean exp(−2 distance²) of unit latents; lower: spread"),
    "monitor_InfoNCE_accuracy_of_masks": Quantity("Nearest view is of the image", "%", MONITORS,
                                                  "of the same images under masks"),
    "monitor_image_share": Quantity("Image share, same images", "share", MONITORS, "under masks"),
    "lr": Quantity("Learning rate", "", OPTIMISATION, "before layer decay"),
    "grad_norm": Quantity("Gradient norm", "", OPTIMISATION, "before clipping", may_be_log=True),
    "images_per_second": Quantity("Throughput", "images/s", SPEED, "over all processes"),
    "memory_gib": Quantity("Memory", "GiB", SPEED, "peak of rank 0: of its GPU, else resident"),
    "seconds": Quantity("Training time", "s", SPEED, "over all starts, evaluations left out"),
    "epoch": Quantity("Last epoch", "", OTHERS, "counted from 0"),
    "steps": Quantity("Steps", "", OTHERS, "of the optimiser"),
    "test_unreadable": Quantity("Unreadable test images", "images", SCORES, "left out of scores"),
    "unreadable": Quantity("Unreadable images", "images", SCORES, "left out of scores"),
    "t": Quantity("Time", "s", is_hidden=True),
    "step": Quantity("Step", is_hidden=True),
}  # fmt: skip
NO_CURVE = {"epoch", "steps", "seconds"}  # of a line in the log, these say which it is


def quantity(name: str) -> Quantity:
    """What a number is, by its name in log.txt, run.jsonl or results.json."""
    found = KNOWN.get(name) or KNOWN.get(base(name))
    if found:
        return found
    if name.startswith("train_") or name.endswith("loss"):
        return Quantity(base(name), "", LOSSES, may_be_log=True)
    return Quantity(name.replace("_", " "), "", SCORES if name.startswith("test_") else OTHERS)


def base(name: str) -> str:
    """A loss's name without what says that it is an epoch's mean."""
    return name.removeprefix("train_")
