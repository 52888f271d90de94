"""How a script runs its `main`: what a user can fix becomes one line and an exit status."""

import argparse
import sys
from collections.abc import Callable

import torch

from util.cluster import distributed
from util.errors import EXIT_INTERRUPTED, EXIT_LOST_RANKS, EXIT_MEMORY, RunError, Stopped


def run_main(
    main: Callable[[argparse.Namespace], None], parse_args: Callable[[], argparse.Namespace]
) -> None:
    """Run a main; what a user can fix becomes one line on stderr and an exit status."""
    try:
        main(parse_args())
    except RunError as error:
        kind = "" if error.status == EXIT_INTERRUPTED else "error: "  # which was asked for
        _exit(f"{kind}{error}", error.status)
    except torch.OutOfMemoryError:
        _exit(
            "error: the GPU is out of memory: lower --batch_size and raise --accum_iter, or add "
            "--grad_checkpointing",
            EXIT_MEMORY,
        )
    except MemoryError as error:
        _exit(
            f"error: out of memory ({error}): ask for less, or take a larger machine", EXIT_MEMORY
        )
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):  # torch has no class for it
            _exit("error: out of memory: ask for less, or take a larger machine", EXIT_MEMORY)
        if not distributed.is_lost_peer(error):
            raise
        reason = str(error).splitlines()[0]
        _exit(f"error: other ranks are lost ({reason}); --resume auto goes on", EXIT_LOST_RANKS)
    except Stopped as stop:
        _exit(str(stop), EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        _exit("interrupted at once, without saving", 130)


def _exit(line: str, status: int) -> None:
    sys.stdout.flush()
    rank = f"[rank {distributed.rank()}] " if distributed.rank() else ""
    print(f"{rank}{line}", file=sys.stderr, flush=True)
    sys.exit(status)
