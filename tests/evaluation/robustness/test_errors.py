"""Corruption errors by hand, from planted tables of errors."""

import json

import numpy as np
import pytest

from util.data.corruption.corruptions import CORRUPTIONS, SEVERITIES
from util.evaluation.paired import Difference
from util.evaluation.robustness import report as robustness_report
from util.evaluation.robustness.errors import (
    ALEXNET,
    EXTRA,
    Robustness,
    corruption_errors,
    difference_of_errors,
    mean_corruption_error,
    wrong_per_image,
)
from util.evaluation.robustness.report import Report

N = 500  # images


def planted(errors, num_images=N, clean=0.25) -> Robustness:
    """Results with these errors (shares) by corruption and severity; wrong are the first images."""
    found = Robustness({"ImageNet": np.arange(num_images) >= clean * num_images})
    for (corruption, severity), share in errors.items():
        found.corrupted[corruption, severity] = np.arange(num_images) >= round(share * num_images)
    return found


def table(value) -> dict:
    return {(c, s): value(i, s) for i, c in enumerate(CORRUPTIONS) for s in SEVERITIES}


def test_the_denominators_are_the_fifteen_and_no_extra_one():
    assert list(ALEXNET) == list(CORRUPTIONS) and not set(EXTRA) & set(ALEXNET)


def test_mce_by_hand():
    found = planted(table(lambda i, s: 0.02 * (i + s)))
    means = [100 * np.mean([0.02 * (i + s) for s in SEVERITIES]) for i in range(15)]
    by_hand = [100 * mean / other for mean, other in zip(means, ALEXNET.values(), strict=True)]
    assert list(corruption_errors(found, ALEXNET).values()) == pytest.approx(by_hand)
    assert mean_corruption_error(found, ALEXNET) == pytest.approx(np.mean(by_hand))
    found.corrupted["saturate", 1] = np.zeros(N, bool)  # an extra one changes nothing
    assert mean_corruption_error(found, ALEXNET) == pytest.approx(np.mean(by_hand))


def test_alexnets_own_errors_are_exactly_100():
    found = planted({(c, s): ALEXNET[c] / 100 for c in CORRUPTIONS for s in SEVERITIES}, 250_000)
    assert mean_corruption_error(found, ALEXNET) == pytest.approx(100, abs=1e-9)


@pytest.mark.parametrize("absent", [("fog", 3), ("jpeg_compression", 5)])
def test_without_one_severity_there_is_no_mce(absent):
    found = planted(table(lambda i, s: 0.5))
    del found.corrupted[absent]
    assert mean_corruption_error(found, ALEXNET) is None and found.missing() == [absent]
    assert corruption_errors(found, ALEXNET)["snow"] == pytest.approx(5000 / ALEXNET["snow"])


def test_each_images_share_adds_up_to_the_mce():
    found = planted(table(lambda i, s: 0.02 * (i + s)))
    keys = list(found.corrupted)
    shares = wrong_per_image(found, keys, ALEXNET)
    assert shares.shape == (N,)
    assert shares.mean() == pytest.approx(mean_corruption_error(found, ALEXNET))
    plain = np.mean([found.error(*key) for key in keys])
    assert wrong_per_image(found, keys).mean() == pytest.approx(plain)


def test_differences_are_of_what_both_have():
    one, other = (planted(table(lambda i, s, shift=shift: 0.3 + shift)) for shift in (0.1, 0.0))
    found = difference_of_errors(one, other)
    assert found.difference == pytest.approx(10) and found.low < 10 < found.high
    of_mce = difference_of_errors(one, other, ALEXNET)
    mce = [mean_corruption_error(result, ALEXNET) for result in (one, other)]
    assert of_mce.difference == pytest.approx(mce[0] - mce[1])
    same = difference_of_errors(one, one)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert difference_of_errors(one, Robustness()) is None


# ------------------------------------------------------------------------------------ the report


def report(monkeypatch, baseline=None, is_published=True, num_images=N, **changes) -> Report:
    count = robustness_report.CORRUPTED.num_images if num_images is None else num_images
    published = robustness_report.CORRUPTED.__class__("--imagenet_c", count)
    monkeypatch.setattr(robustness_report, "CORRUPTED", published)
    results = {"A": planted(table(lambda i, s: 0.5)), "B": planted(table(lambda i, s: 0.4))}
    for key, right in changes.items():
        corruption, _, severity = key.rpartition("_")
        for found in results.values():
            found.corrupted[corruption, int(severity)] = right
            if right is None:
                del found.corrupted[corruption, int(severity)]
    return Report(results, baseline, is_published, ["How it was done."])


def test_the_table_has_mce_and_its_protocol(monkeypatch):
    one = report(monkeypatch)
    text = one.markdown()
    mce = 100 * np.mean([50 / error for error in ALEXNET.values()])
    assert f"| mCE | {mce:.2f} | {0.8 * mce:.2f} |" in text
    assert f"| fog | 50.00 ({5000 / ALEXNET['fog']:.1f}) |" in text
    assert "How it was done." in text and "| ImageNet | 75.00 | 75.00 |" in text
    assert "| mCE, lower by | +" in text and "gain" in text
    saved = json.loads(json.dumps(one.as_json()))
    assert saved["classifiers"]["B"]["mCE"] == pytest.approx(0.8 * mce)
    assert saved["classifiers"]["A"]["errors"]["fog"]["3"] == 50
    assert saved["unit"] == ALEXNET and saved["protocol"] == ["How it was done."]
    assert one.headline()["A, mCE"] == pytest.approx(mce)
    assert one.picture().size == (640, 420)


def test_each_is_compared_with_all_before_it(monkeypatch):
    one = report(monkeypatch)
    one = Report(one.results | {"C": one.results["B"]}, None, True, [])
    found = one.as_json()["classifiers"]
    compared = {
        name: [key for key in of if key.startswith("against")] for name, of in found.items()
    }
    assert compared == {"A": [], "B": ["against A"], "C": ["against A", "against B"]}
    for label, difference in found["C"]["against B"].items():
        assert difference["difference"] == 0, label
        assert found["C"]["against A"][label] == found["B"]["against A"][label]


def test_another_baseline_gives_relative_ce_and_no_mce(monkeypatch):
    one = report(monkeypatch, baseline="A")
    text = one.markdown()
    assert "| mean relative CE (to A) | 100.00 | 80.00 |" in text and "mCE" not in text
    assert "mCE" not in json.dumps(one.as_json())


def test_extra_corruptions_stand_apart(monkeypatch):
    plain = report(monkeypatch)
    extra = report(monkeypatch, **{f"spatter_{s}": np.zeros(N, bool) for s in SEVERITIES})
    assert "| spatter (extra) | 100.00 | 100.00 |" in extra.markdown()
    assert extra.mean_ce == plain.mean_ce
    assert difference_of_errors(*extra.results.values()) == Difference(
        *vars(difference_of_errors(*plain.results.values())).values()
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fog_3": None}, "Missing, so there is no mean and no mCE: fog 3."),
        ({f"fog_{s}": None for s in SEVERITIES}, "no mCE: fog."),
        ({"num_images": None}, "Images are missing, so there is no mCE."),
    ],
)
def test_what_is_missing_is_said_and_there_is_no_mce(monkeypatch, options, said):
    one = report(monkeypatch, **options)
    assert said in one.markdown() and "| mCE |" not in one.markdown()
    assert set(one.mean_ce.values()) == {None}


def test_what_was_made_has_no_mce(monkeypatch):
    assert "mCE" not in report(monkeypatch, is_published=False).markdown()
