"""Work beside the training loop: a copy of its state, and the thread that writes it.

The thread writes what nobody else touches: `Snapshot` copies the state before it changes again.
torch, the file's write and its flush let other threads run meanwhile.
"""

import copy
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Snapshot:
    """Copies of states, in memory that is allocated once and used again by the next copy."""

    def __init__(self) -> None:
        self.buffers: dict[tuple, Tensor] = {}  # by the keys that lead to the tensor

    def take(self, state: dict) -> dict:
        """A copy of a state on the CPU, as it is now; it holds until the next call.

        Args:
            state: tensors and plain values in dicts, lists and tuples. What lies on a GPU is
                copied to pinned memory, all at the speed of the bus, and then waited for.

        Raises:
            RuntimeError: there is no memory for it.
        """
        copied = self._copy(state, ())
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return copied

    def _copy(self, value: Any, keys: tuple) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), keys)
        if isinstance(value, dict):
            copied = copy.copy(value)  # a module's has attributes
            copied.update({key: self._copy(item, (*keys, key)) for key, item in value.items()})
            return copied
        if isinstance(value, list | tuple):
            return type(value)(self._copy(item, (*keys, i)) for i, item in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, keys: tuple) -> Tensor:
        buffer = self.buffers.get(keys)
        if buffer is None or (buffer.shape, buffer.dtype) != (tensor.shape, tensor.dtype):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self.buffers[keys] = buffer
        return buffer.copy_(tensor, non_blocking=True)


class Background:
    """A thread for one task at a time. The interpreter does not end before the task has."""

    def __init__(self) -> None:
        self.has_ended = threading.Event()  # an interrupted Thread.join takes a thread for ended
        self.has_ended.set()
        self.result, self.error = True, None
        _all.add(self)

    def start(self, task: Callable[[], bool]) -> None:
        """Begin a task, once the one before has ended."""
        self.wait()
        self.has_ended.clear()
        threading.Thread(target=self._run, args=(task,), name="background").start()

    def _run(self, task: Callable[[], bool]) -> None:
        try:
            self.result = task()
        except BaseException as error:
            self.result, self.error = False, error
        finally:
            self.has_ended.set()

    def wait(self) -> bool:
        """What the last task returned, once it has ended; True where there was none.

        Raises:
            what the task raised.
        """
        self.has_ended.wait()
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.result


_all: weakref.WeakSet[Background] = weakref.WeakSet()


def _await_all() -> None:
    for background in list(_all):
        background.has_ended.wait()


# A data-loader worker that is forked while a thread holds a lock (of an import, of a stream, of
# an allocator) finds it locked for ever: a fork waits until nothing is in flight.
os.register_at_fork(before=_await_all)
