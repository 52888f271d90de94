"""A data set in micro-batches, from any position in an epoch on, whatever the number of workers.

A global micro-batch holds W·`batch_size` images, of which rank r takes every W-th from r on.
"""

import argparse
import atexit
import itertools
import logging
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data._utils import signal_handling

from util.checks import image_size
from util.cluster import agreement, distributed
from util.data import unreadable
from util.data.datasets import DATASETS
from util.data.images import of_one_type
from util.data.transformed import TransformedImages
from util.data.transforms import ResizeCenterCrop
from util.errors import EXIT_DATA, RunError, UsageError, first_line
from util.randomness import epoch_order

log = logging.getLogger(__name__)


class Batches:
    """Loads a data set in micro-batches.

    Args:
        dataset: gives (image, target, bad index or −1) for (pass over the data, index).
        batch_size: images per rank and micro-batch.
        training: shuffle, and drop the rest that does not fill a global micro-batch; else in
            order, each image once over all ranks, the last batches smaller (ranks may differ).
        max_bad_images: unreadable images are replaced; more of them end the run.
        alone: the data set is this rank's own, which reads all of it.
        keep_workers: keep the workers between epochs; else they are started for each.
        length: micro-batches of an epoch, in training; then an epoch goes on in the pass over the
            data in which the one before ended. None: an epoch is a pass.
        collate: makes [images, targets, bad] of a list of items; by default tensors of them.
    """

    max_restarts = 3  # of workers that died, in a row

    def __init__(
        self, dataset: TransformedImages, batch_size: int, training: bool, seed: int = 0,
        num_workers: int = 0, pin_memory: bool = False, max_bad_images: int = 100,
        alone: bool = False, keep_workers: bool = True, length: int | None = None,
        collate: Callable | None = None,
    ):  # fmt: skip
        self.dataset, self.batch_size, self.training, self.seed = (
            dataset, batch_size, training, seed,
        )  # fmt: skip
        self.is_alone, self.own_left_out = alone, []
        self.rank = 0 if alone else distributed.rank()
        self.world_size = 1 if alone else distributed.world_size()
        self.global_size = batch_size * self.world_size
        if training and len(dataset) < self.global_size:
            raise UsageError(
                f"--batch_size {batch_size} on {self.world_size} process(es) is larger "
                f"than the data, {len(dataset)} images: lower it"
            )
        self.per_pass = (
            len(dataset) // self.global_size if training else -(-len(dataset) // self.global_size)
        )
        self.length = length or self.per_pass
        self.last_order: tuple[int, torch.Tensor] | None = None
        self.max_bad_images, self.bad_images = max_bad_images, set()
        num_workers = min(num_workers, num_cores())
        self.plan = _Plan()
        self.loader_options = dict(
            batch_sampler=self.plan, num_workers=num_workers, pin_memory=pin_memory,
            persistent_workers=keep_workers and num_workers > 0, worker_init_fn=_init_worker,
            collate_fn=collate or _collate,
        )  # fmt: skip
        self.loader = DataLoader(dataset, **self.loader_options)
        self.workers: list[multiprocessing.Process] = []
        # Called on all ranks before each micro-batch that all of them have.
        self.before_batch: Callable[[], None] | None = None

    def __len__(self) -> int:
        """Micro-batches per epoch (on any rank; in evaluation the last may be empty on some)."""
        return self.length

    def global_ids(self, epoch: int, micro_batch: int) -> list[int]:
        """Indices of all ranks' images in a micro-batch."""
        return [index for _, index in self._items(epoch, micro_batch)]

    def own_ids(self, epoch: int, micro_batch: int) -> list[int]:
        """Indices of this rank's images in a micro-batch."""
        return [index for _, index in self._own_items(epoch, micro_batch)]

    def _own_items(self, epoch: int, micro_batch: int) -> list[tuple[int, int]]:
        return self._items(epoch, micro_batch)[self.rank :: self.world_size]

    def _items(self, epoch: int, micro_batch: int) -> list[tuple[int, int]]:
        """(pass over the data, index) of all ranks' images in a micro-batch."""
        number, place = divmod(epoch * self.length + micro_batch, self.per_pass)
        start = place * self.global_size
        ids = self._order(number)[start : start + self.global_size].tolist()
        return [(number, index) for index in ids]

    def _order(self, number: int) -> torch.Tensor:
        """The images' order in a pass over the data."""
        if self.last_order is None or self.last_order[0] != number:
            count = len(self.dataset)
            order = epoch_order(count, self.seed, number) if self.training else torch.arange(count)
            self.last_order = number, order
        return self.last_order[1]

    def epoch(
        self, epoch: int = 0, start: int = 0, skip: frozenset[int] = frozenset(),
        what: str = "replaced",
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
        """(images, targets) of micro-batch `start` and those that follow, but for `skip`.

        An image that cannot be read is replaced by another one, with that one's target; `what` the
        log says of it.
        """
        for _, imgs, targets, bad in self._epoch(epoch, start, skip):
            self._count_bad(bad, what)
            yield imgs, targets

    def each_once(
        self, replace: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(ids, images, targets) of the whole set, as an evaluation needs it.

        An image that cannot be read is left out, and `left_out` tells which those were.

        Args:
            replace: have another one in its place, under its id, as in training.
        """
        self.own_left_out = []
        for ids, imgs, targets, bad in self._epoch():
            self._count_bad(bad, "replaced" if replace else "left out")
            is_read = torch.ones_like(bad, dtype=torch.bool) if replace else bad < 0
            self.own_left_out += ids[~is_read].tolist()
            if is_read.all():
                yield ids, imgs, targets
            elif is_read.any():
                yield ids[is_read], imgs[is_read], targets[is_read]

    def left_out(self, is_score: bool = True) -> list[int]:
        """The ids of what `each_once` has left out, on any rank. For all ranks.

        Args:
            is_score: what the set is read for; a mere monitor may be of a part of a published set.

        Raises:
            RunError: where the set is a published one, of which a part is no score.
        """
        own = self.own_left_out
        parts = [own] if self.is_alone else agreement.gather(own)
        ids = sorted(itertools.chain(*parts))
        return unreadable.leave_out(self.dataset.images, ids, is_score)

    def _epoch(
        self, epoch: int = 0, start: int = 0, skip: frozenset[int] = frozenset()
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(ids, images, targets, bad indices) by micro-batches."""
        numbers = (n for n in range(start, len(self)) if n not in skip)
        slices = [self._own_items(epoch, n) for n in numbers]
        plan = [items for items in slices if items]
        done = restarts = 0
        while done < len(plan):
            self.plan.items = plan[done:]
            try:
                for imgs, targets, bad in self._read():
                    if self.before_batch and done < len(self.dataset) // self.global_size:
                        self.before_batch()
                    ids = torch.tensor([index for _, index in plan[done]])
                    yield ids, imgs, targets, bad
                    done, restarts = done + 1, 0
            except UsageError as error:  # a worker's comes wrapped in its traceback
                self._start_anew()
                raise UsageError(str(error).splitlines()[-1].split("UsageError: ")[-1]) from None
            except (RuntimeError, ConnectionError, EOFError) as error:
                if not is_death(error):
                    raise
                restarts += 1
                reason = first_line(error)
                if "Bus error" in reason:
                    reason += f"; {shared_memory()}"
                if restarts > self.max_restarts:
                    raise RunError(
                        f"data-loader workers die again and again ({reason}): lower --num_workers",
                        EXIT_DATA,
                    ) from None
                log.warning("a data-loader worker died, starting new ones: %s", reason)
                self._start_anew()

    def _read(self) -> Iterator:
        """The loader's batches; a dead worker shows here and nowhere else.

        torch's SIGCHLD handler raises in whatever the main thread does when a worker dies, most
        often in the middle of a step. Without it the loader finds the dead one while it waits.
        """
        if threading.current_thread() is not threading.main_thread():
            return iter(self.loader)
        before, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
        iterator = iter(self.loader)
        is_torchs = getattr(before, "__module__", "") == signal_handling.__name__
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_torchs or before is None else before)
        self.workers = [worker for worker in self.workers if worker.is_alive()]
        self.workers += set(multiprocessing.active_children()) - others
        return iterator

    def _start_anew(self) -> None:
        """End the workers, of which one failed, and make a loader that starts new ones."""
        for worker in self.workers:
            worker.kill()
        self.workers = []
        self.loader = DataLoader(self.dataset, **self.loader_options)

    def _count_bad(self, bad: torch.Tensor, done: str) -> None:
        """Args: done: what was done with them."""
        for index in bad[bad >= 0].tolist():
            if index not in self.bad_images:
                self.bad_images.add(index)
                log.warning(
                    "unreadable image %d %s: %s",
                    len(self.bad_images),
                    done,
                    self.dataset.problem(index),
                )
        if len(self.bad_images) > self.max_bad_images:
            raise RunError(
                f"{len(self.bad_images)} images cannot be read, more than --max_bad_images "
                f"{self.max_bad_images}: fix the files named above, or raise the limit",
                EXIT_DATA,
            )


def open_batches(
    args: argparse.Namespace, data: Dataset, training: bool, device: torch.device, **options
) -> Batches:
    """The loader of a data set with the batch size, seed and workers that the flags say.

    Args:
        options: more arguments of `Batches`, or others than the flags'.
    """
    return Batches(data, training=training, **loading(args, device) | options)


def loading(args: argparse.Namespace, device: torch.device) -> dict:
    """The arguments of `Batches` that are flags."""
    return dict(
        batch_size=args.batch_size, seed=args.seed, num_workers=args.num_workers,
        pin_memory=args.pin_mem and device.type == "cuda", max_bad_images=args.max_bad_images,
    )  # fmt: skip


def evaluation_view(args: argparse.Namespace) -> ResizeCenterCrop:
    """The transform of test images: resize and centre crop, by --input_size and the data set."""
    return ResizeCenterCrop(image_size(args.input_size, 1), DATASETS[args.dataset].crop_share)


def is_death(error: BaseException) -> bool:
    """Whether what the loader raised says that a worker has died: torch hands on what a living one
    raised as the same kind of error, with a text that begins so."""
    if str(error).startswith("Caught "):
        return False
    return not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)


def shared_memory() -> str:
    """What to do where workers find no room for their batches."""
    try:
        free = f"{shutil.disk_usage('/dev/shm').free >> 20} MiB are free in /dev/shm"
    except OSError:
        free = "their batches lie in shared memory"
    return f"{free}: give a container more (--shm-size), or lower --num_workers"


class _Plan:
    """The batch sampler: this epoch's items, as `Batches.epoch` left them.

    It does not know its `Batches`: in a ring of references the loader would be freed by the
    garbage collector, which closes the workers' queues before it can tell them to end.
    """

    def __init__(self) -> None:
        self.items: list[list[tuple[int, int]]] = []

    def __iter__(self):
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _collate(items: list[tuple]) -> list[torch.Tensor]:
    images, *rest = zip(*items, strict=True)
    return default_collate([*zip(of_one_type(images), *rest, strict=True)])


def _init_worker(worker: int) -> None:
    """Workers outlive no one: the main process handles the signals and ends them."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """At the end of a run that failed, workers live on: multiprocessing's SIGTERM is not for them.

    It would wait for them for ever.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
