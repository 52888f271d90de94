"""A study's records and its verdicts, on runs whose truth is known."""

import fcntl
import re
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from benchmarks import equal_samples, study
from util.errors import UsageError


def record(variant, seed, correct):
    counts = study.pack(np.asarray(correct))
    scores = {"knn": 100 * float(np.mean(correct))}
    return dict(variant=variant, flags="", seed=seed, setting={}, scores=scores,
                correct={"knn": [counts, 1]}, losses={"rec": 0.5})  # fmt: skip


def runs(variant, accuracy, seeds, rng, images=2000, spread=0.0):
    """Records of a variant that is right on an image with this probability, which seeds shift."""
    return [
        record(variant, seed, rng.random(images) < accuracy + spread * rng.standard_normal())
        for seed in seeds
    ]


def test_what_was_right_survives_the_file(tmp_path):
    path = str(tmp_path / "new" / "study.jsonl")
    counts = np.array([0, 8, 3, 1], np.uint8)
    first = record("a", 0, counts) | {"correct": {"few": [study.pack(counts), 8]}}
    assert study.read(path) == []
    study.append(path, first)
    study.append(path, record("b", 1, [1]))
    assert study.read(path)[0] == first
    assert study.percentages(first, "few").tolist() == [0, 100, 37.5, 12.5]


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [((0.9, 0.8), "gain"), ((0.7, 0.8), "loss"), ((0.8, 0.8), "cannot be told")],
)
def test_verdicts(accuracies, verdict):
    rng = np.random.default_rng(1)
    variant, reference = (runs("x", share, range(3), rng, spread=0.005) for share in accuracies)
    comparison = study.compare({"x": variant}, reference, "knn")["x"]
    assert comparison.verdict == verdict and comparison.num_seeds == 3
    assert comparison.low < comparison.difference < comparison.high


def test_equal_predictions_are_no_difference_and_one_seed_tells_nothing():
    rng = np.random.default_rng(2)
    reference = runs("r", 0.8, range(3), rng)
    same = study.compare({"x": reference}, reference, "knn")["x"]
    assert same.difference == 0 and same.verdict == "no difference (within ±1)"
    one = study.compare({"x": reference[:1]}, reference[:1], "knn")["x"]
    assert one.verdict == "cannot be told"


def test_a_report_of_some_variants_corrects_over_these(tmp_path, monkeypatch, capsys):
    """Variants that a file got later make no earlier verdict weaker."""
    path, rng = str(tmp_path / "study.jsonl"), np.random.default_rng(4)
    names = ["reference", "better", *(f"later {i}" for i in range(20))]
    for name in names:
        share = 0.88 if name == "better" else 0.8
        for one in runs(name, share, range(3), rng, images=1000, spread=0.004):
            study.append(path, one)
    command, told = ["equal_samples.py", "--report", "--study", path], []
    for tell in ([], ["--tell", *names[:2]]):
        monkeypatch.setattr("sys.argv", [*command, "--reference", "reference", *tell])
        equal_samples.main()
        out = capsys.readouterr().out
        told.append(next(line for line in out.splitlines()[::-1] if "| better |" in line))
        assert ("later 3" in out) == (not tell)
    assert told[0].replace("cannot be told", "gain") == told[1] != told[0]
    monkeypatch.setattr("sys.argv", [*command, "--tell", "x"])
    with pytest.raises(SystemExit, match="has no x"):
        equal_samples.main()


def test_only_common_seeds_are_compared():
    reference = [record("r", 0, [1, 1, 0, 0]), record("r", 1, [1, 0, 0, 0])]
    variant = [record("x", 1, [1, 1, 1, 0]), record("x", 2, [0, 0, 0, 0])]
    comparison = study.compare({"x": variant}, reference, "knn")["x"]
    assert comparison.difference == 50 and comparison.num_seeds == 1
    assert study.compare({"y": variant[1:]}, reference, "knn") == {}


def test_the_interval_covers_the_truth():
    """95 % of the intervals, of 4 variants by 3 seeds, over test sets and seeds drawn anew."""
    rng, hits, trials = np.random.default_rng(3), 0, 100
    for _ in range(trials):
        hard = rng.random(500)  # images are easy or hard for all runs alike

        def row(shift, seed, hard=hard):
            noise = 0.01 * rng.standard_normal()
            return record("x", seed, rng.random(500) < np.clip(hard + shift + noise, 0, 1))

        reference = [row(0, seed) for seed in range(3)]
        variants = {str(i): [row(0, seed) for seed in range(3)] for i in range(4)}
        comparison = study.compare(variants, reference, "knn", num_boots=200)
        hits += sum(one.low <= 0 <= one.high for one in comparison.values())
    assert hits / (4 * trials) > 0.9


def test_the_report_has_a_row_for_each_variant_and_each_comparison():
    reference = [record("MAE", seed, [1, 1, 0, 0]) for seed in (0, 1)]
    other = [record("MI-MAE", 0, [1, 1, 1, 0]), record("MI-MAE", 1, [1, 1, 1, 1])]
    text = study.report(other + reference, ["MAE"])
    assert "| MI-MAE | 0, 1 | 87.5 ± 17.7 | 0.500 ± 0.000 |" in text
    assert "| MAE | 0, 1 | 50.0 ± 0.0 |" in text
    assert "| MI-MAE | +37.5 [" in text


def test_balanced_scores_are_means_over_classes():
    targets = np.array([0] * 8 + [1, 1])
    rows = [record("x", 0, [1] * 4 + [0] * 4 + [1, 1]), record("y", 0, [1] * 8 + [0, 0])]
    x, y = study.balanced(rows, targets)
    assert (x["scores"]["knn"], y["scores"]["knn"]) == (pytest.approx(75), pytest.approx(50))
    assert study.compare({"x": [x]}, [y], "knn")["x"].difference == pytest.approx(25)
    assert rows[0]["scores"]["knn"] == pytest.approx(60)  # as it was


def test_one_seed_tells_an_interval_over_images_alone():
    rng = np.random.default_rng(4)
    one, other = runs("a", 0.9, [3], rng), runs("b", 0.8, [3], rng)
    (cell,) = re.findall(r"\| a \| (\+.*) \|", study.report(one + other, ["b"]))
    low, high = map(float, re.search(r"one seed; over images alone \[(.*), (.*)\]", cell).groups())
    half = 1.96 * 100 * np.sqrt((0.9 * 0.1 + 0.8 * 0.2) / 2000)  # two independent shares
    assert (high - low) / 2 == pytest.approx(half, rel=0.2) and low < 10 < high


def test_a_name_that_has_other_flags_is_another_variant():
    other = record("a", 1, [1, 1]) | {"flags": "--lr 1"}
    named = study.by_variant([record("a", 2, [1, 0]), other, record("a", 0, [0, 0])])
    assert {name: [row["seed"] for row in rows] for name, rows in named.items()} == {
        "a": [0, 2], "a: --lr 1": [1],
    }  # fmt: skip


def test_a_run_that_is_there_twice_counts_once():
    """As two processes may have written it down."""
    rng = np.random.default_rng(5)
    reference, variant = (runs(name, 0.8, range(3), rng) for name in "rx")
    twice = [*variant, *(one | {"scores": {"knn": 0.0}} for one in variant[1:])]
    assert study.report(reference + twice, ["r"]) == study.report(reference + variant, ["r"])


def test_a_line_that_was_cut_off_is_named_and_harms_no_other(tmp_path, monkeypatch):
    path = tmp_path / "study.jsonl"
    study.append(str(path), record("a", 0, [1]))
    path.write_bytes(path.read_bytes() + b'{"variant": "b", "se')
    study.append(str(path), record("c", 0, [1]))
    monkeypatch.setattr("sys.argv", ["equal_samples.py", "--report", "--study", str(path)])
    with pytest.raises(SystemExit, match=r"--study .*study.jsonl: line 2 is no whole record"):
        equal_samples.main()
    first, _, last = path.read_text().splitlines()
    path.write_text(f"{first}\n{last}\n")
    assert [one["variant"] for one in study.read(str(path))] == ["a", "c"]


def test_the_report_names_the_commits_of_runs_of_several():
    one, other = record("a", 0, [1, 0]), record("a", 1, [1, 1])
    known = one | {"commit": "abc1"}
    assert "commits" not in study.report([known, other | {"commit": "abc1"}], ["b"])
    text = study.report([known, other | {"commit": "d", "commits": ["abc1", "c", "d"]}], ["b"])
    assert text.endswith("Runs are of 3 commits: abc1, c, d")


def test_verdicts_are_corrected_over_all_references_together():
    """A gain that one comparison leaves, and the 36 of six references do not."""
    rng = np.random.default_rng(0)
    variants = {"x": [record("x", seed, rng.random(200) < 0.9) for seed in range(3)]}
    for name in ("a", "b", "c", "d", "e", "f"):
        variants[name] = [record(name, seed, rng.random(200) < 0.7) for seed in range(3)]
    few = study.differences({name: variants[name] for name in ("x", "a")}, ["a"], ["knn"])
    many = study.differences(variants, list("abcdef"), ["knn"])
    assert "| against a | knn |" in many and "| against f | knn |" in many
    assert few[-1].endswith("gain |") and "cannot be told" in many[3]
    assert few[-1].split(" gain")[0] == many[3].split(" cannot")[0]  # the interval is the same


def test_a_variant_that_cannot_be_run_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    """Unknown flags, and flags that the model refuses."""
    path = str(tmp_path / "study.jsonl")
    bad = ["A: --lambda_maxx 1", "B: --num_masks 1 --lambda_max 1"]
    words = ["--study", path, "--runs", str(tmp_path / "runs"), "--dataset", "digits", "--pixels"]
    words += ["--seeds", "0", "--probe_images", "200", "--few", "4", "--draws", "1"]
    monkeypatch.setattr("sys.argv", ["equal_samples.py", *words, "--variants", *bad])
    with pytest.raises(SystemExit):
        equal_samples.main()
    told = capsys.readouterr().err
    assert told.count("cannot be run") == 2 and "Traceback" not in told
    assert [row["variant"] for row in study.read(path)] == ["pixels"]


def test_a_balanced_report_has_the_data_of_its_records(tmp_path, monkeypatch, capsys):
    """Whatever --dataset says: here the records', on which encoders of other data were tested."""
    path = str(tmp_path / "study.jsonl")
    rng = np.random.default_rng(0)
    for seed in range(2):
        one = record("x", seed, rng.random(382) < 0.9)
        one["setting"] = dict(dataset="fashion_mnist", probe_dataset="digits")
        study.append(path, one | {"losses": {"rec": 0.5, "max_mi": 0.0}})
    words = ["--report", "--balanced", "--study", path, "--reference", "x"]
    monkeypatch.setattr("sys.argv", ["equal_samples.py", *words])
    equal_samples.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| x |")]
    assert line.endswith("| 0.500 ± 0.000 | – | – | – |")  # what is 0 was not computed


def test_an_error_of_one_run_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    """Whatever it is: here the second of three has no data."""
    path = str(tmp_path / "study.jsonl")

    class Now:
        """A pool that does each job at once, in this process."""

        def __init__(self, *args):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, measure, args, variant, seed):
            job = Future()
            if seed == 1:
                job.set_exception(UsageError("no such folder"))
            else:
                job.set_result(record(variant, seed, [True]))
            return job

    monkeypatch.setattr(equal_samples, "ProcessPoolExecutor", Now)
    words = ["--study", path, "--runs", str(tmp_path / "runs"), "--seeds", "0", "1", "2"]
    monkeypatch.setattr("sys.argv", ["equal_samples.py", *words, "--variants", "A:"])
    with pytest.raises(SystemExit):
        equal_samples.main()
    assert sorted(row["seed"] for row in study.read(path)) == [0, 2]
    assert "no such folder" in capsys.readouterr().err
    # A process that began before these were written down has the same runs done.
    reading = study.read
    monkeypatch.setattr(study, "read", lambda path: reading(path) if started else [])
    started = []
    monkeypatch.setattr(Now, "__enter__", lambda self: started.append(1) or self)
    monkeypatch.setattr("sys.argv", ["equal_samples.py", *words, "--variants", "A:"])
    with pytest.raises(SystemExit):
        equal_samples.main()
    assert sorted(row["seed"] for row in reading(path)) == [0, 2]
    assert "came from another process" in capsys.readouterr().out


def test_a_run_that_another_process_has_begun_is_not_begun(tmp_path):
    words = ["--runs", str(tmp_path), "--dataset", "digits", "--epochs", "4"]
    args = equal_samples.get_args_parser().parse_args(words)
    own = dict(variant="A", flags="", seed=0, setting=equal_samples.setting(args))
    with open(tmp_path / (equal_samples.place(own) + ".log"), "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(equal_samples.Failed, match="another process"):
            equal_samples.measure(args, "A:", 0)


def test_runs_that_differ_have_folders_of_their_own():
    """Of --common, of data in a layout that others have, too, and of flags; not of probes."""

    def folder(*words, variant="MI/MAE: --lr 1"):
        name, _, flags = variant.partition(":")
        args = equal_samples.get_args_parser().parse_args(words)
        own = dict(variant=name, flags=flags.strip(), seed=0, setting=equal_samples.setting(args))
        return equal_samples.place(own, args.data_path)

    layout = ("--dataset", "image_folder", "--data_path")
    folders = [
        folder(), folder("--common=--in_chans 1"), folder("--steps", "9"), folder(*layout, "/a/b"),
        folder(*layout, "/a/c"), folder(*layout, "/d/c"),
        folder(variant="MI/MAE: --lr 2"), folder(variant="MI MAE:"),
    ]  # fmt: skip
    assert len(set(folders)) == len(folders) and "/" not in folders[0]
    probes = ("--few", "4", "--pools", "mean", "--probe_dataset", "digits")
    assert folder(*probes) == folders[0]
    assert folder("--dataset", "digits", "--data_path", "/a") == folder("--dataset", "digits")


def test_encoders_can_be_tested_on_other_data(monkeypatch):
    """Pixels of digits in the size of Fashion-MNIST, which need not be there."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which it would change
    words = ["--dataset", "fashion_mnist", "--probe_dataset", "digits"]
    args = equal_samples.get_args_parser().parse_args(words)
    record = equal_samples.measure(args, equal_samples.PIXELS, 0)
    assert record["setting"]["probe_dataset"] == "digits" and record["scores"]["knn"] > 80
