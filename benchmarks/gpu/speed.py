"""Masked samples per second of pre-training: by model and batch, as it is, compiled, as a graph.

The share of the peak is of what matrix products reach on this device in the step's dtype; what is
counted is a forward and a backward pass.
"""

import argparse
import os
import time
from collections.abc import Callable

import torch

from benchmarks import pretrain_step
from benchmarks.gpu.kernels import where_time_goes
from benchmarks.gpu.record import Record, Rows
from benchmarks.gpu.sizes import (
    GIB,
    compiler,
    peak_gib,
    peak_of_products,
    seconds_per_step,
    start_peak,
    step_flags,
)
from util.errors import UsageError

WITHOUT_MI = ("--lambda_max", "0", "--lambda_min", "0")
FLAT = 1.02  # a batch of twice the size that is no faster than this is the last one


def run(record: Record, args: argparse.Namespace) -> None:
    if args.official and not os.path.isfile(os.path.join(args.official, "models_mae.py")):
        raise UsageError(f"--official {args.official} has no models_mae.py: name a clone of MAE's")
    Speed(record, args).run()


class Speed:
    """The stage's parts, each of which makes use of those before it."""

    def __init__(self, record: Record, args: argparse.Namespace):
        self.record, self.args, self.is_tiny = record, args, args.tiny
        self.amp = "auto" if torch.cuda.is_available() else "none"
        self.first = {"base": 32, "small": 64, "large": 16}  # images of the first batch

    def run(self) -> None:
        part, tiny = self.record.part, self.is_tiny
        models = ("nano",) if tiny else ("base", "small", "large")
        part("peak of matrix products", 10, self._peaks)
        for model in models:
            part(f"{model}, batches", 30, lambda m=model: self._batches(m))
        part("profile", 20, lambda: where_time_goes(self._step(models[0])[0], tiny))
        for model in models:
            part(f"{model}, variants", 25, lambda m=model: self._variants(m))
        if self.args.official:
            part("official MAE", 60, self._official)
        for model in models:
            part(f"{model}, compiled", 90, lambda m=model: self._compiled(m))

    def _peaks(self) -> Rows:
        dtypes = [torch.float32] if self.is_tiny else [torch.bfloat16, torch.float16, torch.float32]
        return [
            {"dtype": str(dtype), "TFLOP/s": peak_of_products(dtype, self.is_tiny) / 1e12}
            for dtype in dtypes
        ]

    def _step(self, model: str, images: int = 0, *flags: str, compile: bool = False):
        """The step, its facts and its images, of the fastest batch where none is given."""
        images = images or self._best(model)
        options = step_flags(self.is_tiny, compile=compile)
        start_peak()
        train, facts = pretrain_step.build_ours(options, model, images, self.amp, *flags)
        return train, facts, images

    def _best(self, model: str) -> int:
        rows = [row for row in self.record.rows(f"{model}, batches") if "masked/s" in row]
        return max(rows, key=lambda row: row["masked/s"])["images"] if rows else self._start(model)

    def _start(self, model: str) -> int:
        return 1 if self.is_tiny else self.first[model]

    def _timed(self, train: Callable, facts: dict, images: int) -> dict[str, object]:
        start_peak()
        seconds = seconds_per_step(train, self.is_tiny)
        row = {"images": images, "masked/s": 4 * images / seconds, "ms": 1000 * seconds}
        peaks = self.record.rows("peak of matrix products")
        known = {peak["dtype"]: 1e12 * peak["TFLOP/s"] for peak in peaks}
        if str(facts["dtype"]) in known:
            row["% of peak"] = 100 * facts["flops"] / seconds / known[str(facts["dtype"])]
        return row | {"GiB": peak_gib(), "estimated GiB": facts["memory"] / GIB}

    def _batches(self, model: str) -> Rows:
        """Batches of twice the size each, until one is no faster or does not fit."""
        rows: Rows = []
        images = self._start(model)
        while self.record.left() > 10 or not rows:
            try:
                rows.append(self._timed(*self._step(model, images)))
            except torch.OutOfMemoryError:
                rows.append({"images": images, "note": "out of memory"})
                break
            if len(rows) > 1 and rows[-1]["masked/s"] < FLAT * rows[-2]["masked/s"]:
                break
            if self.is_tiny and len(rows) == 2:
                break
            images *= 2
        return rows

    def _variants(self, model: str) -> Rows:
        """The same batch with and without the MI terms, half decoded, and as a CUDA graph."""
        plans = {"MI-MAE": (), "without MI terms": WITHOUT_MI}
        plans["half decoded"] = ("--pred_ratio", "0.5")
        rows = [
            {"variant": name} | self._timed(*self._step(model, 0, *flags))
            for name, flags in plans.items()
        ]
        if torch.cuda.is_available():
            rows.append({"variant": "CUDA graph"} | self._graph(model))
        return rows

    def _graph(self, model: str) -> dict[str, object]:
        """Forward and backward pass and update, replayed; why not, where it does not survive."""
        from benchmarks.gpu.graph import graphed

        images = self._best(model)
        try:
            train, facts = graphed(step_flags(self.is_tiny), model, images, self.amp)
            return self._timed(train, facts, images)
        except (RuntimeError, AssertionError) as error:
            return {"images": images, "note": str(error).splitlines()[0][:200]}

    def _compiled(self, model: str) -> Rows:
        with compiler(self.is_tiny):
            train, facts, images = self._step(model, compile=True)
            started = time.perf_counter()
            train(1)
            took = time.perf_counter() - started
            return [{"seconds to compile": took} | self._timed(train, facts, images)]

    def _official(self) -> Rows:
        """In processes of their own, in turns, on the same work."""
        model, images, pixels, rounds, steps, amp = "base", 64, 224, 3, 5, "auto"
        if self.is_tiny:
            model, images, pixels, rounds, steps, amp = "small", 1, 32, 1, 1, "none"
        options = step_flags(
            self.is_tiny, against=self.args.official, amp=[amp], without_mi=True, pred_ratio=1.0,
            rounds=rounds, steps=steps, input_size=pixels,
        )  # fmt: skip
        start_peak()
        found = pretrain_step.contest(options, model, images)
        if not any("official" in one.name for one in found):
            raise RuntimeError(f"{self.args.official} does not run here: its error stands above")
        return [
            {"step": one.name, "masked/s": 4 * images * one.rate, "the first is":
             found[0].ratio(one), "GiB": one.peak / GIB}
            for one in found
        ]  # fmt: skip
