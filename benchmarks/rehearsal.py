"""Rehearse, without a GPU, every forward pass that a GPU would run, in fp16, bf16 and fp32.

python benchmarks/rehearsal.py

Tensors of the device `cuda` without values (torch's FakeTensorMode) go through the mains' own
steps; the gradients are given, since autograd does not run on them. A line for each case: the
seconds it took, or what failed; then what would make the host wait for the device, and where.
"""

import argparse
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from benchmarks.gpu.cases import CASES, Case
from benchmarks.gpu.fake_gpu import FakeGPU, Wait
from util.errors import first_line
from util.training.precision import AMPS

# What no rehearsal reaches, and why.
NOT_REHEARSED = {
    "backward passes": "autograd wants a real device; every parameter gets a gradient of zero",
    "torch.compile and CUDA graphs": "they make kernels for a real device",
    "NCCL and DistributedDataParallel": "they need a real device; one process is rehearsed",
    "torchvision's NMS": "how many boxes it keeps depends on values: 40 are kept",
    "RoI align's kernel, fused attention's kernels": "only the shapes of what they give are known",
    "memory": "a shape takes none: `gpu_hour.py check` measures it",
    "values": "NaN, overflow in fp16 and accuracy are what `gpu_hour.py check` compares",
}


def rehearse(case: Case, amps: tuple[str, ...] = AMPS) -> list[Wait]:
    """Run a case in each precision that matters; what it waits for, by the first time.

    Raises:
        Exception: whatever the case raises, which a GPU would raise, too.
    """
    modules, run = case.built()
    with FakeGPU(**case.answers) as gpu:
        for module in modules:
            gpu.take(module)
        for amp in amps if case.has_amps else ("none",):
            run(amp)
    return gpu.waits


def report(found: dict[str, list[Wait]]) -> str:
    """Markdown: what waits, and in which cases."""
    cases: dict[Wait, list[str]] = {}
    for name, waits in found.items():
        for wait in waits:
            cases.setdefault(wait, []).append(name)
    lines = [f"| {w.what} | `{w.where}` | {'; '.join(names)} |" for w, names in cases.items()]
    return "\n".join(["| the host waits, because it | in | when |", "|---|---|---|", *lines])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="WORD", help="cases with this in their name")
    args = parser.parse_args(argv)
    found, failed = {}, False
    for case in CASES:
        if args.only not in case.name:
            continue
        started = time.perf_counter()
        try:
            found[case.name] = rehearse(case)
            told = f"{time.perf_counter() - started:.2f} s"
        except Exception as error:
            told, failed = f"FAILS: {type(error).__name__}: {first_line(error)}", True
        print(f"{case.name:40s}{told}", flush=True)
    steps = {case.name for case in CASES if case.is_step}
    print("\nTraining steps\n")
    print(report({name: waits for name, waits in found.items() if name in steps}))
    print("\nEvaluation and log steps\n")
    print(report({name: waits for name, waits in found.items() if name not in steps}))
    print("\nNot rehearsed\n")
    print("\n".join(f"- {what}: {why}" for what, why in NOT_REHEARSED.items()))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
