"""Starts real training processes in a fraction of a second: it has imported torch, and forks.

Reads one JSON object per line: {"main": "main_pretrain", "argv": [...], "log": path,
"slow_disk": seconds}; answers with {"pid": ...} and, when that process has ended, with
{"pid": ..., "status": ...} (negative: the signal that killed it). Each process leads a session of
its own. `slow_disk` widens the moments in which a checkpoint is half written, in the thread that
writes it.
"""

import faulthandler
import json
import os
import signal
import sys
import time

# What the mains import late is imported here, once.
import faster_coco_eval  # noqa: F401
import segmentation_models_pytorch.decoders.upernet.decoder  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch
import torch.utils.tensorboard

import main_detection
import main_evaluate
import main_finetune
import main_linprobe
import main_pretrain
import main_robustness
import main_segmentation
from util.entry import run_main

ALL = (
    main_pretrain, main_finetune, main_linprobe, main_segmentation, main_detection, main_evaluate,
    main_robustness,
)  # fmt: skip
MAINS = {m.__name__: m for m in ALL}


def slow_disk_calls(seconds: float) -> None:
    """Every write, flush and rename of a file takes `seconds` longer, as on a loaded disk."""
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def slow(*args, original=original):
            time.sleep(seconds)
            result = original(*args)
            time.sleep(seconds)
            return result

        setattr(os, name, slow)
    save = torch.save
    torch.save = lambda state, file: save(state, SlowFile(file, seconds))


class SlowFile:
    """Takes `seconds` longer for every 500th write; torch makes some thousands."""

    def __init__(self, file, seconds: float):
        self.file, self.seconds, self.flush, self.count = file, seconds, file.flush, 0

    def write(self, data) -> int:
        self.count += 1
        if self.count % 500 == 0:
            time.sleep(self.seconds)
        return self.file.write(data)


def child(request: dict) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    if request.get("slow_disk"):
        slow_disk_calls(request["slow_disk"])
    main = MAINS[request["main"]]
    try:
        run_main(main.main, lambda: main.parse_args(request["argv"]))
        status = 0
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(json.dumps({"pid": pid}), flush=True)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"pid": pid, "status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
