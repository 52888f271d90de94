"""A process is known again by its number and its start, and by nothing less."""

import os
import signal
import subprocess
import sys
import time

import pytest
from slurm_cluster import wait_for

from reproduction import processes


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("has_proc", [True, False])
def test_a_process_is_alive_until_it_ends_and_a_zombie_is_not(sleeper, monkeypatch, has_proc):
    if not has_proc:
        monkeypatch.setattr(processes.os.path, "exists", lambda path: path != "/proc/self/stat")
        if not processes.started(os.getpid()):
            pytest.skip("no ps on this machine")
    known = processes.identity(sleeper.pid)
    assert processes.is_ours(known) and processes.is_alive(known)
    adopted = processes.Adopted(known)
    assert adopted.poll() is None
    sleeper.kill()
    wait_for(lambda: adopted.poll() == 0, "the end", 10)  # though nobody has asked for its status
    sleeper.wait()
    assert not processes.is_alive(known)


def test_another_process_of_the_number_is_not_taken_for_it(sleeper):
    """Another start, another machine, or an attempt of an older version, which knew neither."""
    known = processes.identity(sleeper.pid)
    time.sleep(0.02)  # a tick
    other = processes.identity(os.getpid())
    assert known["started"] != other["started"]
    assert not processes.is_alive(known | {"started": other["started"]})
    assert not processes.is_alive(known | {"pid": os.getpid()})
    assert not processes.is_alive(known | {"host": "elsewhere"})
    assert not processes.is_ours({}) and not processes.is_alive({"start": 1.0})


def test_a_name_with_spaces_and_brackets_does_not_matter(tmp_path):
    script = tmp_path / "a) 1 (b"
    script.write_text(f"#!{sys.executable}\nimport time; time.sleep(60)\n")
    script.chmod(0o755)
    process = subprocess.Popen([str(script)])
    try:
        known = processes.identity(process.pid)
        assert processes.is_alive(known) and len(known["started"].split()) == 2
    finally:
        process.kill()
        process.wait()


def test_a_signal_goes_to_the_group_and_none_to_what_has_ended(sleeper):
    adopted = processes.Adopted(processes.identity(sleeper.pid))
    processes.send(adopted, signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM
    processes.send(adopted, signal.SIGTERM)
