"""Verdicts on planted predictions: of a real difference, of none, of its opposite, of one seed."""

import json
import os
import re

import numpy as np
import pytest
from planted import plant

from reproduction import choices, claims, judge, paper
from reproduction.graph import Graph
from reproduction.scales import SMALL_SCALES
from util.evaluation import over_seeds

IMAGES, SEEDS = 2000, (0, 1, 2)


@pytest.fixture
def graph(tmp_path):
    made = Graph(SMALL_SCALES["small"], str(tmp_path))
    claims.prepare(made, SEEDS)
    return made


def draw(share: float, seed: int) -> np.ndarray:
    """Which images are right: the easiest ones, and so in any run nearly the same."""
    ease = np.random.default_rng(0).random(IMAGES)
    return ease + np.random.default_rng(seed).normal(0, 0.01, IMAGES) < share


def plant_column(graph, shares: dict[str, float], kind="finetune", seeds=SEEDS):
    for name, share in shares.items():
        for seed in seeds:
            plant(graph, f"seed-{seed}/{kind}/{name}", right=draw(share, seed), test_acc1=0.0)


def verdicts(graph, seeds=SEEDS) -> dict[str, judge.Verdict]:
    return {verdict.text: verdict for verdict in judge.judge(graph, seeds, "abc")}


def test_a_gain_a_loss_and_what_cannot_be_told(graph):
    shares = {"table3-a_mae": 0.5, "table3-b_max": 0.6, "table3-e_min": 0.4, "table3-f_mimae": 0.6}
    plant_column(graph, shares)
    found = verdicts(graph)
    gain, loss = found["(b) L_max gains over (a) MAE"], found["(e) L_min gains over (a) MAE"]
    none = found["(f) L_min gains beside L_max"]
    assert (gain.word, loss.word) == (judge.HOLDS, judge.FAILS)
    assert none.word == f"{judge.OPEN}, {judge.SMALLER}"
    assert gain.found.difference == pytest.approx(10, abs=1) and gain.points == pytest.approx(0.3)
    assert none.found.low <= 0 <= none.found.high
    assert (
        "not run (seed-2/finetune/table3-d"
        in found["(f) the approximation network has to be trained"].cells()[5]
    )


def test_one_seed_tells_nothing(graph):
    plant_column(graph, {"table3-a_mae": 0.3, "table3-b_max": 0.9}, seeds=(0,))
    found = verdicts(graph)["(b) L_max gains over (a) MAE"]
    assert found.word == judge.OPEN and found.found.p == 1


def test_of_one_seed_the_interval_is_over_the_images(graph):
    """And the verdict says whether these two runs differ beyond it: above, below, or not."""
    shares = {"table3-a_mae": 0.5, "table3-b_max": 0.6, "table3-e_min": 0.4, "table3-f_mimae": 0.5}
    plant_column(graph, shares, seeds=(0,))
    found = {text: verdict.cells() for text, verdict in verdicts(graph, (0,)).items()}
    for text, beyond in (
        ("(b) L_max gains over (a) MAE", judge.ABOVE),
        ("(e) L_min gains over (a) MAE", judge.BELOW),
        ("(f) MI-MAE gains over (a) MAE", ""),
    ):
        _, _, here, seeds, p, word, _ = found[text]
        middle, *interval = map(float, re.findall(r"[+-]\d+\.\d+", here))
        assert seeds == "1" and p == ""
        assert abs(middle) == pytest.approx(10.0 if beyond else 0.0, abs=1)
        if beyond:  # of 2000 images a tenth differ, as in a binomial of so many
            half = 100 * 1.96 * np.sqrt(0.1 * 0.9 / IMAGES)
            assert interval == pytest.approx([middle - half, middle + half], abs=0.2)
        assert word.startswith(judge.OPEN) and (not beyond or beyond in word)
        assert bool(beyond) == ("of these two runs" in word)
    assert "over test images only" in judge.markdown([], "small", (0,))


def test_rows_that_a_scale_leaves_out_are_named_unless_asked_for(tmp_path):
    made = Graph(SMALL_SCALES["demo"], str(tmp_path))
    claims.prepare(made, (0,))
    text = "MI-MAE (400 epochs) above MAE (1600), fine-tuned"
    plain = {v.text: v.why for v in judge.judge(made, (0,), "abc")}
    assert plain[text] == "left out at this scale: --rows mimae_400 mae_1600"
    asked = {v.text: v.why for v in judge.judge(made, (0,), "abc", ["mimae_400", "mae_1600"])}
    assert asked[text].endswith("missing")


def test_what_is_small_is_within_a_point(graph):
    plant_column(graph, {"table3-f_mimae": 0.6, "figure2-masks_3": 0.6, "figure2-masks_5": 0.7})
    found = verdicts(graph)
    text = "the number of masks matters little: {} against 4"
    assert found[text.format(3)].word == "holds (within ±1)"
    assert found[text.format(5)].word == "does not hold (within ±1)"


def test_collapse_is_a_probe_below_the_untrained_encoder(graph):
    text = "(c) L_max alone collapses: an untrained encoder probes better"
    plant_column(graph, {"scratch_vit_base": 0.5, "table3-c_max_only": 0.1}, "linprobe")
    assert verdicts(graph)[text].word == judge.HOLDS
    plant_column(graph, {"table3-c_max_only": 0.8}, "linprobe")
    assert verdicts(graph)[text].word == judge.FAILS


def test_few_labels_are_means_over_draws(graph):
    for name, right in (("mae_vit_base_800ep", (0.2, 0.4)), ("mimae_vit_base_200ep", (0.5, 0.7))):
        for seed in SEEDS:
            folder = plant(graph, f"seed-{seed}/one_percent/{name}", test_acc1=0.0)
            for number, share in enumerate(right):
                table = np.stack([draw(share, seed + number), np.ones(IMAGES)], 1)
                path = f"{folder.path}/draw-{number}"
                os.makedirs(path, exist_ok=True)
                np.save(f"{path}/test_predictions.npy", table.astype(np.int32))
    found = verdicts(graph)["MI-MAE (200 epochs) above MAE (800), few labels"]
    assert found.word == judge.HOLDS and found.found.difference == pytest.approx(30, abs=1)


def test_predictions_that_lack_images_judge_nothing(graph):
    plant_column(graph, {"table3-a_mae": 0.5, "table3-b_max": 0.6})
    path = f"{graph.folder('seed-1/finetune/table3-b_max')}/test_predictions.npy"
    table = np.load(path)
    table[[3, 5], 0] = -1
    np.save(path, table)
    found = verdicts(graph)["(b) L_max gains over (a) MAE"]
    assert found.found.num_seeds == 2 and "2 test images could not be read" in found.why


def test_robustness_and_frozen_features_come_from_their_json(graph):
    for seed, difference in zip(SEEDS, (-4.0, -5.0, -6.0), strict=True):
        folder = plant(graph, f"seed-{seed}/robustness/mae_and_mimae")
        one = {"difference": difference, "low": difference - 1, "high": difference + 1}
        content = {"MI-MAE": {"against MAE": {"accuracy under corruptions": one}}}
        with open(f"{folder.path}/robustness.json", "w") as file:
            json.dump({"classifiers": content}, file)
    found = verdicts(graph)["MI-MAE above MAE, under corruptions"]
    half = np.hypot(1, 4.3027 / np.sqrt(3))  # Student's t of two degrees of freedom
    assert found.word == judge.FAILS and found.found.difference == pytest.approx(-5)
    assert found.found.high == pytest.approx(-5 + half, abs=1e-3)
    assert "not run" in verdicts(graph)["MI-MAE above MAE, k-NN"].cells()[5]


def test_the_controls_of_robustness_are_read_from_either_side(graph):
    """The run tells differences to those before it: of the controls to the pre-trained ones."""
    titles = {row.key: row.title for row in paper.TABLE5.rows}
    for seed in SEEDS:
        folder = plant(graph, f"seed-{seed}/robustness/mae_and_mimae")
        content = {}
        for key, difference in (("scratch", -7.0 - seed), ("initialisation", 2.0)):
            one = {"difference": difference, "low": difference - 1, "high": difference + 2}
            content[titles[key]] = {"against MI-MAE": {"accuracy under corruptions": one}}
        with open(f"{folder.path}/robustness.json", "w") as file:
            json.dump({"classifiers": content}, file)
    found = verdicts(graph)
    text = "pre-training gains: MI-MAE (200 epochs) above {}, under corruptions"
    none, start = found[text.format("no pre-training")], found[text.format("its initialisation")]
    assert none.found.difference == pytest.approx(8) and none.word == judge.HOLDS
    assert start.found.difference == pytest.approx(-2) and start.word == judge.FAILS
    assert none.found.of_images == pytest.approx(1.5 / 1.96)
    why = found[text.replace("MI-MAE (200 epochs)", "MAE (800)").format("no pre-training")].why
    assert "of MAE and no pre-training" in why


@pytest.mark.parametrize(("factor", "word"), [(1.02, "HOLDS"), (1.4, "FAILS")])
def test_cost_is_the_ratio_of_seconds(graph, factor, word):
    for seed in SEEDS:
        plant(graph, f"seed-{seed}/pretrain/table3-a_mae", seconds=100 + seed)
        plant(graph, f"seed-{seed}/pretrain/table3-f_mimae", seconds=factor * (100 + seed))
    (found,) = (v for text, v in verdicts(graph).items() if text.startswith("no noticeable"))
    assert found.word == getattr(judge, word)
    assert found.found.difference == pytest.approx(100 * (factor - 1))


def test_nothing_ran_is_said_of_every_claim(graph):
    found = judge.judge(graph, SEEDS, "abc")
    assert all(verdict.found is None and verdict.why for verdict in found)
    text = judge.markdown(found, "small", SEEDS)
    assert "several commits" not in text
    assert "commits: a, b" in judge.markdown(found, "small", SEEDS, ["a", "b"])
    assert text.count("not run") == len(found) == len(claims.CLAIMS) + len(claims.SIDE_BY_SIDE) + 1


def comparison(values, of_images=0.1):
    return over_seeds.comparison(values, of_images)


@pytest.mark.parametrize(
    ("values", "points", "word"),
    [((0.50, 0.52, 0.51), 3.0, "holds, but smaller than the paper's"),
     ((0.40, 0.60, 0.50), 0.6, "holds"), ((0.50, 0.52, 0.51), None, "holds"),
     ((0.0, 0.02, -0.01), 3.0, "cannot be told, but smaller than the paper's"),
     ((0.0, 3.0, -3.0), 3.0, "cannot be told"), ((-0.50, -0.52, -0.51), 3.0, "does not hold")],
)  # fmt: skip
def test_the_papers_size_is_excluded_or_not(values, points, word):
    one = comparison(values, 0.01)
    over_seeds.correct([one])
    assert judge.Verdict("", points, one).word == word
    assert (one.simultaneous[1] < (points or -9)) == ("smaller" in word or word.startswith("does"))


def test_a_verdict_is_the_corrected_one_and_the_interval_the_claims_own(graph):
    """b is above a by so much that it holds alone, and not among all claims of the table."""
    shares = {"table3-a_mae": 0.5, "table3-e_min": 0.4, "table3-f_mimae": 0.5}
    plant_column(graph, shares)
    for seed, share in zip(SEEDS, (0.52, 0.54, 0.53), strict=True):
        plant(graph, f"seed-{seed}/finetune/table3-b_max", right=draw(share, seed), test_acc1=0.0)
    found = verdicts(graph)
    one = found["(b) L_max gains over (a) MAE"]
    assert one.found.low > 0 and one.word == judge.OPEN
    assert one.found.p_of(one.found.difference) < 0.05 < one.found.p
    tested = [v.found for v in found.values() if v.found is not None]
    assert {comparison.family for comparison in tested} == {len(tested)}
    _, _, here, seeds, p, _, pooled = one.cells()
    assert "[" in here and seeds == "3" and float(p) == pytest.approx(one.found.p, abs=1e-3)
    assert pooled.startswith("[") and pooled not in here
    assert f"over the {len(tested)} claims" in judge.markdown(list(found.values()), "small", SEEDS)


def test_one_run_that_varies_more_does_not_widen_the_others(graph):
    shares = {"table3-a_mae": 0.5, "table3-b_max": 0.6, "table3-f_mimae": 0.5}
    plant_column(graph, shares)
    before = verdicts(graph)["(b) L_max gains over (a) MAE"].found
    for seed, share in zip(SEEDS, (0.1, 0.5, 0.9), strict=True):
        plant(graph, f"seed-{seed}/finetune/table3-f_mimae", right=draw(share, seed), test_acc1=0.0)
    after = verdicts(graph)["(b) L_max gains over (a) MAE"].found
    assert (after.low, after.high) == (before.low, before.high)
    assert after.pooled > 5 * before.pooled


def test_a_run_that_does_not_know_its_seconds_judges_no_cost(graph):
    for seed in SEEDS:
        plant(graph, f"seed-{seed}/pretrain/table3-a_mae", seconds=100)
        plant(graph, f"seed-{seed}/pretrain/table3-f_mimae", seconds=102)
        folder = graph.folder(f"seed-{seed}/pretrain/table3-f_mimae")
        with open(f"{folder}/results.json") as file:
            results = json.load(file)
        with open(f"{folder}/results.json", "w") as file:
            json.dump(results | {"seconds": None}, file)
    (found,) = (v for text, v in verdicts(graph).items() if text.startswith("no noticeable"))
    assert found.found is None and "does not know its seconds" in found.why


def test_it_is_said_which_choices_were_made_on_these_seeds():
    old, mixed = choices.lines("small", (0, 1)), choices.lines("small", (2, 7))
    assert "seeds 0, 1 of this table are no test" in old[-1] and "--seeds 3 4 5" in old[-1]
    assert "seeds 2 of" in mixed[-1] and "seeds 7 are." in mixed[-1] and "--seeds 8" in mixed[-1]
    assert "new to all" in choices.lines("small", (5, 6))[-1]
    assert "None of our settings" in choices.lines("imagenet", (0,))[-1]
    names = " ".join(claim.what for claim in choices.CHOICES)
    assert "--club_floor" in names and all("seed" in line for line in old if line[:2] == "- ")
