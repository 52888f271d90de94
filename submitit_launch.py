r"""Submit any main as a SLURM job that comes back after a preemption, a time-out or a dead node.

python submitit_launch.py main_finetune --nodes 1 --ngpus 8 --job_dir /shared/runs/%j \
    @recipes/vit_base_finetune.args --finetune ... --data_path ...

The first word names the main. Flags that are not listed here go to it.
"""

import argparse
import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import submitit
from submitit.core.utils import FailedJobError, JobPaths

import main_detection
import main_evaluate
import main_finetune
import main_linprobe
import main_pretrain
import main_robustness
import main_segmentation
from util.cluster.slurm_job import Job, failure_file
from util.entry import run_main
from util.errors import RunError, UsageError
from util.flags.parser import (
    WRITTEN_OUT,
    ArgumentParser,
    is_given,
    last_rates,
    number,
    refuse_second_rate,
)
from util.provenance import commit
from util.training.requeue import begin

ROOT = Path(__file__).resolve().parent
MAINS = {
    main.__name__: main
    for main in (
        main_detection, main_evaluate, main_finetune, main_linprobe, main_pretrain,
        main_robustness, main_segmentation,
    )
}  # fmt: skip
# What a job needs, beside the root.
ROOMS = ("encoders", "exports", "heads", "util", "tools", "recipes")
CODE_SUFFIXES = (".py", ".args", ".txt", ".json")


def get_args_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument_group("the machines").add_argument
    # fmt: off
    add("--nodes", type=number(int, 1), default=1, help="machines")
    add("--ngpus", type=number(int, 0), default=8, help="GPUs, and tasks, per node; 0: CPUs only")
    add("--tasks_per_node", type=number(int, 1), default=1,
        help="tasks per node where --ngpus is 0")
    add("--cpus_per_task", type=number(int, 1), default=10, help="cores per task, for its workers")
    add("--mem_gb", type=number(float, 0.1), help="memory per node, GB (default: the partition's)")
    add("--constraint", help="node feature, as your site names it: v100-32gb, volta32gb, ...")
    add("--sbatch", action="append", default=[], metavar="KEY=VALUE",
        help="any other sbatch option, as exclude=node7 or exclusive; may be repeated")
    # fmt: on

    add = parser.add_argument_group("the queue").add_argument
    # fmt: off
    add("--partition", help="partition (default: the site's)")
    add("--account", help="account to charge")
    add("--qos", help="quality of service")
    add("--comment", help="some sites ask for a reason")
    add("--job_name", help="name in the queue (default: the main's)")
    add("--dependency", help="start after other jobs, as afterok:123")
    add("--array", type=int, nargs="+", metavar="SEED",
        help="run the command once per seed, as a job array, in job_dir/seed-SEED")
    add("--timeout", type=number(int, 1), default=4320, help="time limit of one start, minutes")
    add("--signal_delay", type=number(int, 1), default=120,
        help="seconds before the limit at which the run saves and is requeued; more than a step "
        "and an evaluation take")
    add("--max_timeouts", type=number(int, 0), default=20,
        help="requeue so often at the time limit (a limit of 10 minutes or less counts "
        "preemptions, too)")
    add("--max_requeues", type=number(int, 0), default=5,
        help="requeue so often after a task died without a word, or lost the others")
    # fmt: on

    add = parser.add_argument_group("files").add_argument
    # fmt: off
    add("--job_dir", default="output_dir/slurm/%j",
        help="a folder that all nodes share: the run's --output_dir. %%j is the job's number; its "
        "logs and code are in slurm/ inside it, or beside the part with %%j")
    add("--dry_run", action="store_true", help="print the sbatch script and submit nothing")
    # fmt: on
    return parser


def launch(main: ModuleType, argv: list[str]) -> None:
    """Submit a main as a job.

    Args:
        main: a module with `parse_args(argv)` and `main(args)`.
        argv: the launcher's own flags and the main's, in any order.
    """
    run_main(lambda args: submit(main, *args), lambda: split_args(main, argv))


def split_args(main: ModuleType, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split a command line into the launcher's flags, parsed, and the main's, as words.

    Raises:
        UsageError: what the main would refuse is refused here, before anything is submitted.
    """
    parser = get_args_parser()
    parser.prog = f"launcher of {main.__name__}"
    refuse_second_rate(parser, argv)
    launcher_args, rest = parser.parse_known_args(argv)  # which reads every @file
    rest = last_rates(rest)
    if parser.is_given("tasks_per_node", argv) and not parser.is_given("ngpus", argv):
        raise UsageError("--tasks_per_node is of CPU runs: add --ngpus 0, or leave it away")
    processes = launcher_args.nodes * (launcher_args.ngpus or launcher_args.tasks_per_node)
    launcher_args.sources = parser.files_of_flags(argv)
    with as_one_of(processes), written_out(launcher_args.sources):
        main_args = main.parse_args(rest)
    if launcher_args.array and (is_given("--seed", rest) or is_given("--output_dir", rest)):
        raise UsageError("--array sets --seed and --output_dir itself: use --job_dir instead")
    added_flags = {"--resume": "auto"} | (
        {} if launcher_args.array else {"--output_dir": launcher_args.job_dir}
    )
    for flag, value in added_flags.items():
        if hasattr(main_args, flag[2:]) and not is_given(flag, rest):
            rest += [flag, value]
    return launcher_args, rest


@contextlib.contextmanager
def as_one_of(processes: int) -> Iterator[None]:
    """Inside, the environment is that of the first of so many processes."""
    launched = {"RANK": "0", "WORLD_SIZE": str(processes)}
    before = {name: os.environ.get(name) for name in launched}
    os.environ.update(launched)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


@contextlib.contextmanager
def written_out(sources: dict[str, str]) -> Iterator[None]:
    """Inside, flags of the command line are those of the @files that they come from."""
    WRITTEN_OUT.update(sources)
    try:
        yield
    finally:
        WRITTEN_OUT.clear()


def submit(main: ModuleType, args: argparse.Namespace, argv: list[str]) -> list[str]:
    """Write the snapshot and submit the job, or with --dry_run print its script.

    Returns:
        The jobs' numbers; none of a dry run.

    Raises:
        UsageError: an unusable flag or folder.
        RunError: SLURM refused the job.
    """
    folder = JobPaths.get_first_id_independent_folder(args.job_dir) / "slurm"
    code = Snapshot(folder)
    executor = Executor(folder, max_num_timeout=args.max_timeouts)
    executor.update_parameters(**sbatch_parameters(args, main.__name__, folder, code.path))
    runs = [argv]
    if args.array:
        runs = [
            [*argv, "--seed", str(seed), "--output_dir", f"{args.job_dir}/seed-{seed}"]
            for seed in args.array
        ]
    if args.dry_run:
        print(executor.script(len(runs)))
        print(f"# each task runs, in {os.getcwd()}:")
        for run in runs:
            print(f"#   {main.__name__}.py {shlex.join(run)}")
        return []
    if shutil.which("sbatch") is None:
        raise UsageError("sbatch is not on this machine: submit from a login node, or --dry_run")
    code.write()
    started = partial(begin, args.sources, time.time())
    try:
        with _outside_a_job(), executor.batch():
            jobs = [
                executor.submit(Job(main.parse_args, main.main, run, os.getcwd(), started))
                for run in runs
            ]
    except (FailedJobError, subprocess.CalledProcessError) as error:
        raise RunError(f"sbatch refused the job: {str(error).strip()}") from None
    # What a job does is not asked here: without accounting submitit cannot tell and would wait.
    for job in jobs:
        print(f"submitted job {job.job_id}, log: {job.paths.stdout}")
    return [job.job_id for job in jobs]


def _outside_a_job() -> contextlib.AbstractContextManager:
    """Hides the variables of a job that this runs in, which sbatch would take for its options."""
    is_inside = "SLURM_JOB_ID" in os.environ
    return submitit.helpers.clean_env() if is_inside else contextlib.nullcontext()


def sbatch_parameters(
    args: argparse.Namespace, name: str, folder: Path, code: Path
) -> dict[str, object]:
    """The flags as parameters of submitit, with the shell lines before and after srun."""
    extra: dict[str, object] = {"requeue": True}
    for option in args.sbatch:
        key, given, value = option.partition("=")
        extra[key.lstrip("-")] = value if given else True
    optional = {
        name: getattr(args, name)
        for name in ("partition", "account", "qos", "constraint", "comment", "dependency")
        if getattr(args, name)
    }
    if args.ngpus:
        optional["gpus_per_node"] = args.ngpus
    if args.mem_gb:
        optional["mem"] = f"{round(args.mem_gb * 1024)}MB"
    tasks = args.ngpus or args.tasks_per_node
    return optional | dict(
        job_name=args.job_name or name,
        nodes=args.nodes,
        ntasks_per_node=tasks,
        cpus_per_task=args.cpus_per_task,
        time=args.timeout,
        signal_delay_s=args.signal_delay,
        stderr_to_stdout=True,
        wckey=None,  # submitit's default is refused where such keys are checked
        additional_parameters=extra,
        srun_args=[
            "--kill-on-bad-exit=1",  # else a dead rank leaves the others waiting
            f"--cpus-per-task={args.cpus_per_task}",  # since 22.05 srun does not take sbatch's
            # submitit starts `python -m`, which looks in its working directory first.
            f"--chdir={code}",
        ],
        setup=[
            f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export MIMAE_COMMIT={shlex.quote(commit())}",
            f"rm -f {_quoted(failure_file(folder, '$SLURM_JOB_ID'))}",
        ],
        teardown=requeue_after_crash(folder, args.max_requeues),
    )


def _quoted(path: Path) -> str:
    """The path in double quotes, in which bash still puts in variables."""
    return '"' + "".join(f"\\{c}" if c in '"`\\' else c for c in str(path)) + '"'


def requeue_after_crash(folder: Path, max_requeues: int) -> list[str]:
    """Lines of the batch script, after srun, that requeue the job at most `max_requeues` times.

    srun fails without a failure reported by the run where a task was killed or lost its peers. In
    a job that SLURM is ending or requeueing itself, the state is no longer RUNNING.
    """
    crashes = _quoted(folder / "$SLURM_JOB_ID.crashes")
    return [
        "status=$?",
        # An array's task by its place: its own number may be that of the whole array, too.
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "job=${job:-$SLURM_JOB_ID}",
        f"if [ $status -ne 0 ] && [ ! -e {_quoted(failure_file(folder, '$SLURM_JOB_ID'))} ] &&",
        '   [ "$(squeue --noheader --jobs $job --format %T)" = RUNNING ]; then',
        f'  echo "status $status after restart ${{SLURM_RESTART_COUNT:-0}}" >> {crashes}',
        f'  if [ "$(wc -l < {crashes})" -le {max_requeues} ]; then',
        '    echo "a task died or lost the others (status $status): the job is requeued"',
        "    scontrol requeue $job && sleep 300",
        "  fi",
        "fi",
        "exit $status",
    ]


class Executor(submitit.SlurmExecutor):
    """submitit's SLURM executor, which can also show its script on a machine without SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, num_jobs: int) -> str:
        """The sbatch script of `num_jobs` jobs (more than one: an array)."""
        if num_jobs > 1:
            self.parameters["map_count"] = num_jobs
        return self._make_submission_file_text(self._submitit_command_str, "")


class Snapshot:
    """A copy of the code as it is now, uncommitted edits included, named after its content."""

    def __init__(self, folder: Path):
        self.files = code_files()
        digest = hashlib.sha256()
        for name in self.files:
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
        self.path = folder / f"code-{digest.hexdigest()[:12]}"

    def write(self) -> None:
        """Copy the files, unless a snapshot of the same code is there already.

        Raises:
            UsageError: --job_dir cannot be written.
        """
        if self.path.exists():
            return
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            for name in self.files:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, temporary / name)
            temporary.rename(self.path)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UsageError(
                f"--job_dir: the code cannot be copied to {self.path} ({error.strerror})"
            ) from None


def code_files() -> list[str]:
    """Paths below ROOT of the code: the files that git knows, or without git all in its rooms.

    Raises:
        UsageError: the main imports a file that git does not know: the job would lack it.
    """
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *(f"*{s}" for s in CODE_SUFFIXES)]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        names = [str(p.relative_to(ROOT)) for p in ROOT.glob("*.py")]
        for room in ROOMS:
            names += [str(p.relative_to(ROOT)) for p in (ROOT / room).rglob("*.*")]
        return sorted(name for name in names if name.endswith(CODE_SUFFIXES))
    names = sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())
    imported = [Path(m.__file__) for m in sys.modules.values() if getattr(m, "__file__", None)]
    for path in imported:
        is_ours = path.parent == ROOT or any(path.is_relative_to(ROOT / room) for room in ROOMS)
        if path.suffix == ".py" and is_ours:
            name = str(path.relative_to(ROOT))
            if name not in names:
                raise UsageError(
                    f"{name} is not known to git, so the job would lack it: git add it"
                )
    return names


if __name__ == "__main__":
    if sys.argv[1:2] == ["--help"]:
        get_args_parser().parse_args(["--help"])
    if sys.argv[1:2] == [] or sys.argv[1] not in MAINS:
        get_args_parser().error(f"the first word is a main, one of {', '.join(MAINS)}")
    launch(MAINS[sys.argv[1]], sys.argv[2:])
