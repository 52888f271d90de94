"""Whether a GPU computes what the CPU computes: in each precision, compiled, without waiting."""

import argparse
import importlib.util
import math
import pathlib
import runpy
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import torch

from benchmarks.gpu.record import Record, Rows
from benchmarks.gpu.sizes import GIB, compiler, device, peak_gib, start_peak, step_flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "test_gpu.py"
MODELS = {  # a model's flags in a trial, and the real ones
    "MI-MAE": ("mimae_vit_nano_patch7", "mimae_vit_base_patch16"),
    "MAE": ("mae_vit_nano_patch7", "mae_vit_base_patch16"),
    "SimMIM": ("misimmim_swin_mini_patch2", "misimmim_swin_tiny"),
}


def run(record: Record, args: argparse.Namespace) -> None:
    tiny = args.tiny
    record.part("losses against the CPU", 60, lambda: losses(tiny))
    record.part("precisions", 30, lambda: precisions(tiny))
    record.part("memory against preflight's estimate", 40, lambda: memory(tiny))
    record.part("what waits", 10, lambda: waits(tiny))
    record.part("tests", 60, lambda: own_tests(record.left()))
    record.part("compiled", 60, lambda: compiled(tiny))


class Training:
    """main_pretrain.py's step on the same random images each time.

    Args:
        flags: of main_pretrain.py.
    """

    def __init__(self, flags: list[str], images: int, amp: str, on: torch.device):
        import main_pretrain
        from util.training import optim
        from util.training.precision import Precision

        torch.manual_seed(0)
        args = main_pretrain.parse_args(["--dataset", "flat", "--mi_start_loss", "inf", *flags])
        self.model, self.on = main_pretrain.build_model(args).to(on).train(), on
        self.optimizer = optim.adamw(optim.decay_groups(self.model, 0.05), betas=args.betas)
        optim.set_lr(self.optimizer, 1e-4)
        self.precision = Precision(amp, on, width=384)
        draw = torch.Generator().manual_seed(1)
        size = (images, args.in_chans, *[s * self.model.patch_size for s in self.model.grid])
        self.imgs = torch.randn(size, generator=draw).to(on)

    def steps(self, count: int) -> Iterator[dict[str, float]]:
        """The losses of each of so many steps."""
        from engine_pretrain import step_noise, train_step

        shape = self.model.masks.noise_shape(len(self.imgs))
        for step in range(count):
            noise = step_noise(shape, 1, 0, step, self.on)
            found, _ = train_step(self.model, [self.imgs], noise, self.optimizer, self.precision)
            yield {name: float(value) for name, value in found.items()}


def model_flags(name: str, is_tiny: bool) -> list[str]:
    model = MODELS[name][not is_tiny]
    pixels = (16 if is_tiny else 192) if "swin" in model else (28 if is_tiny else 224)
    return ["--model", model, "--input_size", str(pixels), "--in_chans", "3"]


def losses(is_tiny: bool) -> Rows:
    """Two steps in fp32 on either: the second sees what the first has made of the weights."""
    rows: Rows = []
    for name in MODELS:
        made = [
            list(Training(model_flags(name, is_tiny), 2, "none", on).steps(2))
            for on in (torch.device("cpu"), device())
        ]
        for step, (cpu, other) in enumerate(zip(*made, strict=True)):
            differences = {
                key: abs(other[key] - cpu[key]) / max(abs(cpu[key]), 1e-6) for key in cpu
            }
            worst = max(differences, key=differences.get)
            rows.append(
                {"model": name, "step": step, "loss": cpu["loss"], "here": other["loss"],
                 "relative difference": differences["loss"],
                 "of the gradient's norm": differences["grad_norm"],
                 "largest": f"{differences[worst]:.1e} ({worst})"}
            )  # fmt: skip
    return rows


def precisions(is_tiny: bool) -> Rows:
    """Each --amp: the losses after some steps on the same images, against fp32's."""
    rows: Rows = []
    count, images = (2, 2) if is_tiny else (20, 32)
    for amp in ("none", "bf16", "fp16", "auto"):
        made = Training(model_flags("MI-MAE", is_tiny), images, amp, device())
        found = list(made.steps(count))
        row = {"--amp": amp, "taken": made.precision.name, "steps": count}
        row |= {"first": found[0]["loss"], "last": found[-1]["loss"]}
        reference = rows[0] if rows else row
        row["last, of fp32's"] = row["last"] / reference["last"]
        row["finite"] = all(math.isfinite(v) for one in found for v in one.values())
        row["steps skipped"] = sum(one["grad_norm"] == 0 for one in found)
        rows.append(row)
    return rows


def memory(is_tiny: bool) -> Rows:
    """The peak of a step against what a run's summary says of it."""
    from benchmarks.pretrain_step import build_ours

    rows: Rows = []
    plans = [("nano", 1)] if is_tiny else [("base", 16), ("base", 64), ("large", 32)]
    for model, images in plans:
        for amp in ("none",) if is_tiny else ("bf16", "none"):
            for checkpointed in (False, True):
                start_peak()
                options = step_flags(is_tiny, grad_checkpointing=checkpointed)
                train, facts = build_ours(options, model, images, amp)
                start_peak()
                train(2)
                rows.append(
                    {"model": model, "images": images, "--amp": amp, "checkpointed": checkpointed,
                     "peak GiB": peak_gib(), "estimated GiB": facts["memory"] / GIB}
                )  # fmt: skip
                del train
    return rows


def waits(is_tiny: bool) -> Rows:
    """Warnings of a training step that waits for the device; the rehearsal lists none."""
    made = Training(model_flags("MI-MAE", is_tiny), 2, "none", device())
    list(made.steps(1))
    if not torch.cuda.is_available():
        return [{"what": "a CPU waits for nothing"}]
    from engine_pretrain import step_noise, train_step

    noise = step_noise(made.model.masks.noise_shape(2), 1, 0, 1, made.on)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            train_step(made.model, [made.imgs], noise, made.optimizer, made.precision)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [f"{w.filename}:{w.lineno}: {str(w.message).splitlines()[0]}" for w in found]
    return [{"what": what.removeprefix(f"{ROOT}/")} for what in told] or [{"what": "nothing"}]


def own_tests(seconds: float) -> Rows:
    """The tests marked gpu, by pytest or, where there is none, one by one."""
    if importlib.util.find_spec("pytest"):
        command = [sys.executable, "-m", "pytest", "-n0", "-m", "gpu", str(TESTS)]
        command.remove("-n0") if not importlib.util.find_spec("xdist") else None
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        return [{"test": line} for line in done.stdout.strip().splitlines()[-3:]]
    rows: Rows = []
    for name, test in runpy.run_path(str(TESTS)).items():
        if name.startswith("test_"):
            started = time.perf_counter()
            try:
                test()
                told = "passes" if torch.cuda.is_available() else "passes on a CPU"
            except Exception as error:
                told = f"fails: {type(error).__name__}: {error}"
            rows.append({"test": name, "result": told, "s": time.perf_counter() - started})
    return rows


def compiled(is_tiny: bool) -> Rows:
    """Losses of compiled steps against plain ones."""
    from util.cluster import distributed

    rows: Rows = []
    for name in ("MI-MAE",) if is_tiny else ("MI-MAE", "SimMIM"):
        plain = list(Training(model_flags(name, is_tiny), 2, "none", device()).steps(2))
        made = Training(model_flags(name, is_tiny), 2, "none", device())
        distributed.compile_in_place(made.model, False)
        started = time.perf_counter()
        with compiler(is_tiny):
            found = list(made.steps(2))
        seconds = time.perf_counter() - started
        difference = max(
            abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(plain, found, strict=True)
        )
        rows.append({"model": name, "seconds": seconds, "relative difference": difference})
    return rows
