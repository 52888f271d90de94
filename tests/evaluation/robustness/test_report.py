"""The report of a robustness evaluation: what its numbers are of."""

import numpy as np

from util.evaluation.robustness.errors import Robustness
from util.evaluation.robustness.report import Report


def test_the_images_of_another_test_set_are_no_clean_ones():
    """Of ImageNet-C alone the clean images are not known; ImageNet-A is none of them."""
    right, wrong = np.ones(4), np.zeros(4)
    corrupted = {("fog", severity): right for severity in range(1, 6)}
    alone = Robustness(clean={"ImageNet-A": wrong}, corrupted=corrupted)
    beside = Robustness(clean={"ImageNet-A": wrong, "ImageNet": right}, corrupted=corrupted)
    own = Robustness(clean={"image_folder": right}, corrupted=corrupted)
    for found, clean in ((alone, None), (beside, 100), (own, 100)):
        report = Report({"a": found}, None, False, [])
        curve = report.as_json()["classifiers"]["a"]["accuracy_by_severity"]
        assert curve[0] == clean and curve[1:] == [100] * 5
        assert report.picture() is not None
