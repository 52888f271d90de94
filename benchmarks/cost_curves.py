"""What `scaling.py` times besides a step of pre-training, each against one thing that grows.

A case is built once for each value of its axis; then all of them have their turns, so that
whatever else the machine does falls on all, and the median counts.
"""

import argparse
import itertools
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks import start_up
from util.training.precision import Precision

Timed = Callable[[], float]  # one turn: its seconds
CPU = torch.device("cpu")
DIM, QUERIES = 128, 1000  # width of the features, and images that are classified
TOLERANCE = 0.3  # of a local exponent


@dataclass
class Curve:
    """Seconds against what grows.

    expected: the exponent of seconds in the values. points: (value, seconds). failed: why the
    values after the last point have none.
    """

    what: str
    axis: str
    expected: float
    points: list[tuple[float, float]] = field(default_factory=list)
    failed: str = ""

    def exponent(self) -> float:
        """The least squares' slope of log seconds in log values; NaN of less than two points."""
        if len({x for x, _ in self.points}) < 2:
            return math.nan
        x, y = ([math.log(number) for number in side] for side in zip(*self.points, strict=True))
        mean = statistics.fmean(x)
        rise = sum((a - mean) * b for a, b in zip(x, y, strict=True))
        return rise / sum((a - mean) ** 2 for a in x)

    def breaks(self) -> str:
        """Between which values it leaves its exponent by more than TOLERANCE, and what it is there;
        or what the first value was that failed."""
        found = []
        points = sorted(self.points)
        for (x, before), (larger, after) in itertools.pairwise(points):
            slope = math.log(after / before) / math.log(larger / x)
            if abs(slope - self.expected) > TOLERANCE:
                found.append(f"{x:.10g} to {larger:.10g}: {slope:.2f}")
        return "; ".join([*found, *filter(None, [self.failed])]) or "no"

    def as_json(self) -> dict:
        slope = self.exponent()  # JSON has no NaN
        found = {"exponent": None if math.isnan(slope) else slope, "breaks": self.breaks()}
        return asdict(self) | found


HEAD = """| what | against | seconds | expected | fitted | leaves it |
|---|---|---|---|---|---|"""


def row(curve: Curve) -> str:
    """A line of a table in Markdown, which HEAD begins."""
    cells = ", ".join(f"{x:.10g}: {seconds:.3g}" for x, seconds in curve.points)
    return (
        f"| {curve.what} | {curve.axis} | {cells} | {curve.expected:g} | "
        f"{curve.exponent():.2f} | {curve.breaks()} |"
    )


def measure(
    curve: Curve, values: Sequence[int], build: Callable[[int], Timed], rounds: int
) -> Curve:
    """Fill in a curve's points, one turn after another; a value that fails ends it."""
    cases: dict[int, Timed] = {}
    for value in values:
        try:
            cases[value] = build(value)
            cases[value]()  # not counted: the first touches memory, and plans
        except (RuntimeError, MemoryError) as error:  # out of memory
            cases.pop(value, None)
            curve.failed = f"{value:g}: {str(error).splitlines()[0][:60]}"
            break
    seconds: dict[int, list[float]] = {value: [] for value in cases}
    for _ in range(rounds):
        for value, turn in cases.items():
            seconds[value].append(turn())
    curve.points = [(value, statistics.median(found)) for value, found in seconds.items()]
    return curve


def timed(work: Callable[[], object]) -> Timed:
    def turn() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return turn


# ---------------------------------------------------------------------------------------- classes


def of_a_step(args: argparse.Namespace, is_probe: bool) -> Callable[[int], Timed]:
    """A step of fine-tuning, or of a linear probe, by the number of classes."""
    from encoders.load import build_encoder
    from encoders.vit import Features, LinearProbe
    from engine_finetune import train_step
    from util.training import optim

    def build(classes: int) -> Timed:
        model = build_encoder("vit_tiny_patch4", 0 if is_probe else classes, 32, 3)
        if is_probe:
            model = LinearProbe(Features(model), DIM, classes)
            optimizer = optim.LARS(model.head.parameters(), lr=0.1)
        else:
            optimizer = optim.adamw(optim.decay_groups(model, 0.05))
        batch = (
            torch.randn(args.step_images, 3, 32, 32),
            torch.randint(classes, (args.step_images,)),
        )
        precision = Precision("none", CPU)
        return timed(lambda: train_step(model.train(), [batch], 1, optimizer, precision))

    return build


def features_of(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, DIM), torch.arange(count) % classes


def of_logistic(args: argparse.Namespace) -> Callable[[int], Timed]:
    from util.evaluation.frozen.logistic import fit

    def build(classes: int) -> Timed:
        features, targets = features_of(max(2 * QUERIES, classes), classes)
        features, targets = features[: 2 * QUERIES], targets[: 2 * QUERIES]
        return timed(lambda: fit(features, targets, classes, [1e-3], max_iter=3))

    return build


def of_knn_classes(args: argparse.Namespace) -> Callable[[int], Timed]:
    from util.evaluation.frozen.knn import predict_knn

    def build(classes: int) -> Timed:
        train, queries = features_of(max(args.classes), classes), torch.randn(QUERIES, DIM)
        return timed(lambda: predict_knn(train, queries))

    return build


def of_knn_images(args: argparse.Namespace) -> Callable[[int], Timed]:
    from util.evaluation.frozen.knn import predict_knn

    def build(count: int) -> Timed:
        train, queries = features_of(count, 100), torch.randn(QUERIES, DIM)
        return timed(lambda: predict_knn(train, queries))

    return build


# ------------------------------------------------------------------------------------------ images


def of_start_up(args: argparse.Namespace, folder: str, is_first: bool) -> Callable[[int], Timed]:
    """Opening a folder of so many files, for the first time or again."""

    def build(files: int) -> Timed:
        root, count = pathlib.Path(folder, str(files)), 0
        if not root.exists():
            start_up.make_tree(str(root), files)

        def turn() -> float:
            nonlocal count
            count += is_first
            return start_up.start("folder", str(root), 1, f"{root}-cache{is_first}{count}")[0]

        return turn

    return build


def of_segmentation(args: argparse.Namespace) -> Callable[[int], Timed]:
    """UperNet by windows of a side of --window, a quarter overlapping, on a square image."""
    import main_segmentation
    from util.evaluation.dense.windows import by_windows

    flags = ["--data_path", ".", "--model", "vit_tiny_patch4", "--input_size", str(args.window)]
    own = main_segmentation.parse_args([*flags, "--decoder_channels", "32"])
    model = main_segmentation.build_model(own, None, 20).eval()
    window, stride = [args.window] * 2, [3 * args.window // 4] * 2

    def build(pixels: int) -> Timed:
        image = torch.randn(1, 3, _side(pixels), _side(pixels))
        return timed(torch.no_grad()(lambda: by_windows(model, image, window, stride)))

    return build


def of_detection(args: argparse.Namespace) -> Callable[[int], Timed]:
    """Mask R-CNN on a square image that fills its canvas."""
    import main_detection

    main_detection.require_evaluator = lambda: None  # nothing is scored

    def build(pixels: int) -> Timed:
        flags = ["--data_path", ".", "--model", "vit_tiny_patch4"]
        own = main_detection.parse_args([*flags, "--input_size", str(_side(pixels))])
        model = main_detection.build_model(own, None, 20).eval()
        images = [torch.randint(256, (3, *[_side(pixels)] * 2), dtype=torch.uint8)]
        return timed(torch.no_grad()(lambda: model(images)))

    return build


def _side(pixels: int) -> int:
    return math.isqrt(pixels)


NAMES = ("start_up", "classes", "k_nn", "evaluation")


def others(args: argparse.Namespace, folder: str) -> Iterator[Curve]:
    """The curves of args.curves, measured one after another."""
    squares = [side * side for side in args.sides]
    # fmt: off
    plans = {
        "start_up": [
            (Curve("index of a folder, first start", "files", 1), args.files,
                lambda: of_start_up(args, folder, True)),
            (Curve("the same, second start", "files", 1), args.files,
                lambda: of_start_up(args, folder, False)),
        ],
        "classes": [
            (Curve("fine-tuning, a step", "classes", 0), args.classes,
                lambda: of_a_step(args, False)),
            (Curve("linear probe, a step", "classes", 0), args.classes,
                lambda: of_a_step(args, True)),
            (Curve("logistic regression, 3 steps", "classes", 1), args.classes,
                lambda: of_logistic(args)),
            (Curve("k-NN", "classes", 0), args.classes, lambda: of_knn_classes(args)),
        ],
        "k_nn": [(Curve("k-NN", "images", 1), args.stored, lambda: of_knn_images(args))],
        "evaluation": [
            (Curve("segmentation by windows", "pixels", 1), squares,
                lambda: of_segmentation(args)),
            (Curve("detection", "pixels", 1), squares, lambda: of_detection(args)),
        ],
    }
    # fmt: on
    chosen = [plan for name in NAMES if name in args.curves for plan in plans[name]]
    for curve, values, make in chosen:
        yield measure(curve, values, make(), args.rounds)
