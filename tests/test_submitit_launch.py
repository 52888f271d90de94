"""The launcher, without SLURM: its script, its snapshot, what it refuses; and rank lookup."""

import os
import shutil
import subprocess
import sys
import time
from functools import partial
from types import ModuleType

import pytest

import main_detection
import main_finetune
import main_linprobe
import main_pretrain
import main_segmentation
import submitit_launch
from submitit_launch import ROOT, Snapshot, launch, split_args
from util.cluster import distributed
from util.errors import UsageError
from util.flags.parser import WRITTEN_OUT
from util.training import requeue

DIGITS = ["--dataset", "digits", "--device", "cpu"]


def script(capsys: pytest.CaptureFixture, main: ModuleType, *argv: str) -> str:
    launch(main, ["--dry_run", *argv])
    return capsys.readouterr().out


def test_script_asks_for_what_the_flags_say(capsys, tmp_path):
    flags = {
        "nodes": "4", "partition": "gpu", "account": "lab", "qos": "long", "job_name": "mi",
        "constraint": "v100-32gb", "comment": "paper, table 1", "dependency": "afterok:7",
    }  # fmt: skip
    given = [word for name, value in flags.items() for word in (f"--{name}", value)]
    given += ["--ngpus", "8", "--cpus_per_task", "6", "--timeout", "90", "--mem_gb", "1.5"]
    given += ["--sbatch", "exclude=node7", "--sbatch", "exclusive", "--signal_delay", "60"]
    text = script(capsys, main_pretrain, *given, "--job_dir", f"{tmp_path}/%j", *DIGITS)
    wanted = [
        "nodes=4", "partition=gpu", "account=lab", "qos=long", "job-name=mi", "time=90",
        "constraint=v100-32gb", "comment='paper, table 1'", "dependency=afterok:7",
        "gpus-per-node=8", "ntasks-per-node=8", "cpus-per-task=6", "mem=1536MB", "exclusive",
        "exclude=node7", "signal=USR2@60", "requeue", "open-mode=append",
    ]  # fmt: skip
    lines = text.splitlines()
    assert [f"#SBATCH --{w}" for w in wanted if f"#SBATCH --{w}" not in lines] == []
    assert "wckey" not in text and "array" not in text
    assert "--kill-on-bad-exit=1 --cpus-per-task=6" in text
    assert f"main_pretrain.py {' '.join(DIGITS)} --resume auto --output_dir {tmp_path}/%j" in text
    assert not list(tmp_path.iterdir())


def test_script_is_bash(capsys, tmp_path):
    text = script(capsys, main_pretrain, "--job_dir", f'{tmp_path}/a "b" c', *DIGITS)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    "status, failed, state, earlier, requeued",
    [
        (137, False, "RUNNING", 0, True),  # killed: nobody wrote down why
        (137, False, "RUNNING", 2, False),  # --max_requeues 2 are used up
        (137, False, "COMPLETING", 0, False),  # SLURM itself ends or requeues it
        (1, True, "RUNNING", 0, False),  # the run reported a failure of its own
        (0, False, "RUNNING", 0, False),
    ],
)
def test_a_crash_is_requeued(capsys, tmp_path, status, failed, state, earlier, requeued):
    """The batch script, with stand-ins for SLURM's clients."""
    text = script(capsys, main_pretrain, "--max_requeues", "2", "--job_dir", str(tmp_path), *DIGITS)
    logs = tmp_path / "slurm"
    (tmp_path / "bin").mkdir()
    logs.mkdir()
    (logs / "7.failed").write_text("of an earlier start")
    (logs / "7.crashes").write_text("status 137\n" * earlier)
    fails = f"echo rank 0 > {logs}/7.failed; " if failed else ""
    stand_ins = {
        "srun": f"{fails}exit {status}",
        "squeue": f"echo {state}",
        "scontrol": f'echo "$@" > {tmp_path}/asked; exit 1',
    }
    for name, line in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environ = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", text], env=environ, capture_output=True, text=True)
    assert done.returncode == status
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7\n" if requeued else "")


def test_a_task_of_an_array_is_asked_for_and_requeued_alone(capsys, tmp_path):
    """Also the one whose number is the whole array's."""
    text = script(capsys, main_finetune, "--array", "3", "5", "--job_dir", str(tmp_path), *DIGITS)
    (tmp_path / "bin").mkdir()
    (tmp_path / "slurm").mkdir(exist_ok=True)
    asked = tmp_path / "asked"
    stand_ins = {
        "srun": "exit 137",
        "squeue": f'echo "$@" >> {asked}; echo RUNNING',
        "scontrol": f'echo "$@" >> {asked}; exit 1',
    }
    for name, line in stand_ins.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    numbers = dict(SLURM_JOB_ID="7", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="1")
    environ = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"} | numbers
    subprocess.run(["bash", "-c", text], env=environ, capture_output=True)
    assert asked.read_text().splitlines() == ["--noheader --jobs 7_1 --format %T", "requeue 7_1"]


def test_cpu_tasks(capsys):
    text = script(capsys, main_linprobe, "--ngpus", "0", "--tasks_per_node", "3", *DIGITS)
    assert "--ntasks-per-node=3" in text and "gpus" not in text.split("# setup")[0]


def test_array_of_seeds(capsys, tmp_path):
    text = script(capsys, main_finetune, "--array", "3", "5", "--job_dir", str(tmp_path), *DIGITS)
    assert "#SBATCH --array=0-1%2" in text
    for seed in (3, 5):
        assert f"--resume auto --seed {seed} --output_dir {tmp_path}/seed-{seed}\n" in text


@pytest.mark.parametrize("main", [main_detection, main_segmentation])
def test_a_run_that_is_counted_in_iterations(capsys, tmp_path, main):
    """As others; what it would refuse is refused here."""
    own = ["--data_path", "scenes", "--iterations", "9", "--eval_every", "3"]
    text = script(capsys, main, "--job_dir", str(tmp_path), *own)
    line = f"{main.__name__}.py {' '.join(own)} --resume auto --output_dir {tmp_path}"
    assert line in text and f"#SBATCH --job-name={main.__name__}" in text
    with pytest.raises(SystemExit) as end:
        launch(main, ["--dry_run", "--eval", *own])
    assert end.value.code == 2 and "--eval needs --resume FILE" in capsys.readouterr().err


def test_own_output_dir_and_resume_stay(capsys):
    own = ["--output_dir", "mine", "--resume="]
    text = script(capsys, main_pretrain, *own, *DIGITS)
    assert f"main_pretrain.py {' '.join([*own, *DIGITS])}\n" in text


def test_argument_files_are_read_at_submission(tmp_path):
    recipe = tmp_path / "r.args"
    recipe.write_text("--nodes 3  # for the launcher\n--num_masks 2\n")
    own, rest = split_args(main_pretrain, [f"@{recipe}", *DIGITS])
    assert own.nodes == 3
    assert rest[:2] == ["--num_masks", "2"]


def test_flags_of_an_argument_file_stay_its_own(tmp_path):
    """In the job, too: what does nothing is refused on the command line alone."""
    recipe = tmp_path / "r.args"
    recipe.write_text("--latent_pool mean --warmup_epochs 1\n")
    argv = [f"@{recipe}", *DIGITS, "--model", "mae_vit_nano_patch2"]
    own, rest = split_args(main_pretrain, argv)
    with pytest.raises(UsageError, match="--latent_pool"):
        main_pretrain.parse_args(rest)
    words = requeue.begin(own.sources, time.time(), rest)
    try:
        args = main_pretrain.parse_args(words)
    finally:
        WRITTEN_OUT.clear()
    assert args.settings.sources["warmup_epochs"] == f"@{recipe}"
    assert args.settings.sources["model"] == "command line"


def test_what_a_job_begins_with_is_of_its_own_modules(tmp_path):
    """Pickled by a launcher that is run as a script, and read by another process."""
    (tmp_path / "r.args").write_text("--latent_pool mean\n")
    pickled, words = tmp_path / "job.pkl", [f"@{tmp_path}/r.args", *DIGITS]
    launcher = (
        "import runpy, sys, submitit_launch as known\n"
        f"sys.argv = ['submitit_launch.py']\n"
        "own = runpy.run_path('submitit_launch.py', run_name='launcher')\n"
        f"args, rest = own['split_args'](own['main_pretrain'], {words!r})\n"
        "from functools import partial\n"
        "from submitit.core.utils import cloudpickle_dump\n"
        f"cloudpickle_dump(partial(own['begin'], args.sources, 0.0), {str(pickled)!r})\n"
    )
    job = (
        "import pickle; from util.flags import parser\n"
        f"pickle.load(open({str(pickled)!r}, 'rb'))(['--epochs', '1'])\n"
        "print(parser.WRITTEN_OUT)"
    )
    for code in (launcher, job):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str({"--latent_pool": f"@{tmp_path}/r.args"})


def test_a_start_after_a_save_goes_on_there_and_not_from_the_file_again(tmp_path, monkeypatch):
    submitted = time.time() - 10
    argv = ["--resume", "old.pth", "--output_dir", str(tmp_path)]
    begin = partial(requeue.begin, {}, submitted)
    assert begin(argv) == argv
    saved = tmp_path / "checkpoint-last.pth"
    saved.write_bytes(b"")
    os.utime(saved, (submitted - 5,) * 2)  # it was there before
    assert begin(argv) == argv
    os.utime(saved)
    assert begin(argv) == argv  # another job's: this one has not been requeued
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert begin(argv) == [*argv, "--resume", "auto"]
    assert begin([*argv, "--eval"]) == [*argv, "--eval"]
    assert begin([f"--output_dir={tmp_path}", "--resume=old.pth"])[-2:] == ["--resume", "auto"]
    assert begin(argv[2:]) == argv[2:]  # it has no --resume, as an evaluation's checkpoint


def test_a_rate_replaces_the_files(tmp_path, capsys):
    """Written out for the job, the @file's rate and the later one would be two."""
    recipe, later = tmp_path / "recipe.args", tmp_path / "later.args"
    recipe.write_text("--blr 1e-4\n--epochs 3\n")
    later.write_text("--blr=2e-3\n")
    for words, blr in (([f"@{later}"], 2e-3), (["--blr", "5e-3"], 5e-3)):
        _, rest = split_args(main_pretrain, [f"@{recipe}", *DIGITS, *words])
        args = main_pretrain.parse_args(rest)
        assert (args.blr, args.epochs) == (blr, 3)
    with pytest.raises(SystemExit):
        split_args(main_pretrain, [*DIGITS, "--blr", "1e-3", "--blr", "2e-3"])
    assert "--blr is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--num_maskz", "4"], "--num_maskz"),
        (["--nodes", "0"], "--nodes"),
        (["--seed", "1", "--array", "1", "2"], "--array"),
        (["@no-such-file"], "no-such-file"),
    ],
)
def test_bad_flags_are_refused_before_submission(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(submitit_launch, "submit", lambda *_: pytest.fail("submitted"))
    with pytest.raises(SystemExit) as end:
        launch(main_pretrain, argv)
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert said in message and len(message.strip().splitlines()) == 1


def test_without_sbatch_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(submitit_launch.shutil, "which", lambda _: None)
    with pytest.raises(SystemExit) as end:
        launch(main_pretrain, ["--job_dir", str(tmp_path), *DIGITS])
    assert end.value.code == 2 and "sbatch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_snapshot_holds_uncommitted_edits_and_stays(monkeypatch, tmp_path):
    repository, jobs = tmp_path / "code", tmp_path / "jobs"
    (repository / "util").mkdir(parents=True)
    (repository / "main_x.py").write_text("old\n")
    (repository / "util/tool.py").write_text("tool\n")
    subprocess.run(["git", "init", "-q", repository], check=True)
    subprocess.run(["git", "-C", repository, "add", "."], check=True)
    (repository / "main_x.py").write_text("edited, not committed\n")
    (repository / "scratch.py").write_text("unknown to git\n")
    monkeypatch.setattr(submitit_launch, "ROOT", repository)

    first = Snapshot(jobs)
    first.write()
    assert (first.path / "main_x.py").read_text() == "edited, not committed\n"
    assert (first.path / "util/tool.py").exists()
    assert not (first.path / "scratch.py").exists()
    assert Snapshot(jobs).path == first.path

    (repository / "main_x.py").write_text("edited again\n")
    second = Snapshot(jobs)
    second.write()
    assert second.path != first.path
    assert (first.path / "main_x.py").read_text() == "edited, not committed\n"
    assert len(list(jobs.iterdir())) == 2


def test_snapshot_is_enough_to_run(tmp_path):
    """Beside the job no file of the checkout is needed, nor found."""
    code = Snapshot(tmp_path)
    code.write()
    command = [sys.executable, "-c", "import main_pretrain; print(main_pretrain.__file__)"]
    environ = os.environ | {"PYTHONPATH": str(code.path)}
    done = subprocess.run(command, cwd=code.path, env=environ, capture_output=True, text=True)
    assert done.stdout.strip() == str(code.path / "main_pretrain.py"), done.stderr


STEP = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-09]",
}  # fmt: skip


@pytest.fixture
def environ(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "RANK", "LOCAL_RANK", "WORLD_SIZE")):
            monkeypatch.delenv(name)

    def put(**values: str) -> dict | None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        return distributed.launcher_environment()

    return put


def test_rank_of_a_slurm_step(environ):
    assert environ(**STEP) == {
        "rank": 4, "world_size": 6, "local_rank": 1, "master_addr": "gpu07",
        "master_port": 10000 + 123456 % 20000,
    }  # fmt: skip


def test_one_process_needs_no_group(environ):
    assert environ() is None
    # In a batch script without srun, and in a shell that srun opened.
    assert environ(SLURM_JOB_ID="1", SLURM_NTASKS="8", SLURM_PROCID="0") is None
    assert environ(**STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_torchrun_inside_slurm_wins(environ):
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    found = environ(**STEP, **torchrun, MASTER_PORT="5")
    assert found == {
        "rank": 3, "world_size": 4, "local_rank": 1, "master_addr": "a", "master_port": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    "node_list, names",
    [
        ("gpu1", ["gpu1"]),
        ("gpu[09-11]", ["gpu09", "gpu10", "gpu11"]),
        ("a[1-2,7],b,c[3]-x", ["a1", "a2", "a7", "b", "c3-x"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
    ],
)
def test_node_lists(monkeypatch, node_list, names):
    if shutil.which("scontrol"):
        assert distributed.host_names(node_list) == names
    monkeypatch.setenv("PATH", "")
    assert distributed.host_names(node_list) == names


def test_the_absent_rank_is_named(environ, tmp_path):
    """Two of three ranks come; both say which one did not."""
    code = "import sys; from util.entry import run_main; from util.cluster.distributed import *\n"
    code += "run_main(lambda _: init_process_group('cpu', 0.1), lambda: None)"
    ranks = []
    for rank in (0, 2):
        env = os.environ | STEP | {
            "SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": str(rank), "MASTER_PORT": "29871",
            "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, "-c", code]
        ranks.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in ranks:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 69, said
        assert "rank(s) 1 of 3 did not come within 0:00:06" in said


@pytest.mark.parametrize("words", [[], ["main_nothing"], ["--nodes", "2"]])
def test_the_launcher_of_any_main_refuses_to_guess_one(words):
    command = [sys.executable, "submitit_launch.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "main_finetune, main_linprobe, main_pretrain" in done.stderr


def test_the_launcher_of_any_main_takes_its_flags(tmp_path):
    command = [sys.executable, "submitit_launch.py", "main_finetune", "--dry_run", "--nodes", "2"]
    command += ["--job_dir", str(tmp_path), "--layer_decay", "0.5", *DIGITS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--nodes=2" in done.stdout and "main_finetune.py --layer_decay 0.5" in done.stdout


def test_gradients_travel_in_16_bits():
    """Two processes by torchrun: the averaged gradient is exact, or has the bits of its type.

    They end at once after a backward pass: one run in seven was aborted before shutdown waited.
    """
    code = """
import torch
from util.cluster import distributed
device = distributed.init_process_group("cpu")
rows = torch.tensor([[1/3, 1/5, 1/7, 1/9], [1/11, 1/13, 1/15, 1/17]])
types = dict(none=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
for name, kind in types.items():
    model = distributed.wrap(torch.nn.Linear(4, 1, bias=False), device, name)
    model(rows[distributed.rank()]).sum().backward()
    gradient, exact = model.module.weight.grad[0], rows.mean(0)
    assert torch.equal(gradient, gradient.to(kind).float())
    assert torch.allclose(gradient, exact, rtol=8 * torch.finfo(kind).eps, atol=0)
    assert torch.equal(gradient, exact) == (name == "none")
distributed.shutdown()
"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--no-python", sys.executable, "-c", code],
        env=environ, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("is_inside", [True, False])
def test_a_job_submits_without_its_own_variables(monkeypatch, tmp_path, is_inside):
    """Outside of one, the user's SBATCH_ACCOUNT and the like stay."""
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\nenv > {tmp_path}/env\necho Submitted batch job 5\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_ACCOUNT", "a")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if is_inside:
        monkeypatch.setenv("SLURM_JOB_ID", "4")
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    argv = ["--job_dir", str(tmp_path / "job"), "--partition", "p"]
    launch(main_pretrain, [*argv, *DIGITS])
    names = (tmp_path / "env").read_text()
    assert ("SBATCH_ACCOUNT" in names) != is_inside and "SLURM_CPUS_PER_TASK" not in names
    if is_inside:
        assert os.environ["SLURM_CPUS_PER_TASK"] == "3"


def test_the_mains_flags_are_checked_for_the_jobs_processes(monkeypatch):
    """96 images a step are 93 on one process, which mixup cannot pair, and 64 x 2 on eight."""
    monkeypatch.delenv("RANK", raising=False)
    step = [*DIGITS, "--images_per_step", "1024", "--mixup", "0.8", "--max_batch_size", "96"]
    launcher = ["--nodes", "1", "--ngpus", "8", "--job_dir", "x"]
    split_args(main_finetune, [*launcher, *step])
    assert "RANK" not in os.environ
    launcher[1] = "3"
    with pytest.raises(UsageError, match="--batch_size 43 is odd"):
        split_args(main_finetune, [*launcher, *step])
