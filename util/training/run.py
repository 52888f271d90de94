"""What every main's run has: device, output folder, progress, checkpoints, journal, signals.

A main keeps its own loop over epochs and its engine the one over steps; here it is decided which
steps those are, and when to save, to stop, or to roll back.
"""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from util.checks import check_compression
from util.cluster import agreement, distributed
from util.data.loader import Batches
from util.errors import EXIT_NONFINITE, RunError, Stopped, UsageError
from util.flags.settings import AUTO
from util.logging import setup_logging
from util.progress import Pace, ProgressLine, in_a_line, short
from util.provenance import commit
from util.randomness import STREAM_INIT, STREAM_STEP, seed_libraries
from util.training.checkpoint import Checkpointer, Progress, Stateful, require_saved
from util.training.history import UNKNOWN, History
from util.training.journal import Journal, write_results
from util.training.metrics import Meters
from util.training.nonfinite import NonFiniteLoss, record_nonfinite_step
from util.training.optim import scheduled_lr, steps_per_epoch
from util.training.output import RESULTS, OutputFolder
from util.training.precision import Precision
from util.training.record import Record
from util.training.same_run import look_at_start
from util.training.signals import StopSignal
from util.training.tracker import open_tracker

log = logging.getLogger(__name__)


class Run:
    """Joins the process group, locks the output folder and seeds the libraries.

    Use it as a context manager: leaving it ends the process group and closes the files.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.started = args, time.monotonic()
        self.counts_iterations = hasattr(args, "iterations")  # else epochs
        self.is_guest = distributed.is_distributed()  # of a group that outlives the run
        self.device = distributed.init_process_group(args.device, args.dist_timeout)
        setup_logging(args.log_seconds)
        self.record = Record(args, self.device)
        self.signals = StopSignal()
        try:
            agreement.all_or_none(lambda: look_at_start(args))
            self.folder = agreement.all_or_none(lambda: OutputFolder(args.output_dir))
        except BaseException:
            self.signals.restore()
            self.record.close()
            raise
        self.progress = Progress()
        # Asked now: the code that runs is that of the start, whatever is edited meanwhile.
        self.history = History(commit() if distributed.is_main() else UNKNOWN)
        self.checkpointer: Checkpointer | None = None
        self.journal: Journal | None = None
        self.whole: Pace | None = None  # of the training that is left
        self.unclosed: dict | None = None  # the progress before the last epoch was closed
        seed_libraries(args.seed, STREAM_INIT, device=self.device)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
        self.record.end(self.progress.total_steps, error)
        try:
            if self.checkpointer is not None:  # only a second Ctrl-C does not wait for a save
                self.checkpointer.close(give_up=kind is KeyboardInterrupt)
        finally:
            self.signals.restore()
            if self.journal is not None:
                self.journal.close()
            if not self.is_guest:
                distributed.shutdown()
            self.record.close()

    def precision(self, width: int) -> Precision:
        """Mixed precision by --amp, which from then on says what `auto` took."""
        self.mixed = Precision(self.args.amp, self.device, width)
        self._set_amp()
        return self.mixed

    def _set_amp(self) -> None:
        self.args.amp = self.mixed.name
        if self.mixed.is_auto:
            self.args.settings.sources["amp"] = AUTO

    def start(self, objects: dict[str, Stateful], config: dict, batches: Batches) -> None:
        """Resume, if that is asked for, and open the journal.

        Args:
            objects: `model`, `optimizer`, `scaler`, …: what a checkpoint saves.
            config: plain values that describe the model.
        """
        args = self.args
        per_step = args.accum_iter * batches.global_size
        config = config | dict(samples_per_step=per_step, num_images=len(batches.dataset))
        steps = steps_per_epoch(len(batches), args.accum_iter)
        config |= dict(steps_per_epoch=steps, seed=args.seed)
        if self.counts_iterations:
            config["eval_every"] = args.eval_every  # a position counts in rounds of it
        self.batches = batches
        self.checkpointer = Checkpointer(
            args.output_dir, objects, self.progress, config, args, self.history
        )
        resumed = self.checkpointer.resume(args.resume)
        self._set_amp()  # which the checkpoint may know
        check_compression(self.mixed.name, args.grad_compression)
        if self.folder.holds(args.resume):  # by hand, to where `auto` must not leave it again
            self.folder.set_aside(agreement.main_does(lambda: self.checkpointer.later(args.resume)))
        elif args.resume != "auto":
            self.folder.set_aside()
        self.was_finished = self.is_finished()  # before this run began
        self.record.begin(self.history, self.progress, batches, per_step, self._model())
        self.journal = Journal(args.output_dir, self.progress, self.was_finished)
        self.journal.tracker = agreement.all_or_none(lambda: open_tracker(args))
        self.journal.text("flags", args.settings.table(args))
        self.meters = Meters(self.progress, self.device)
        self.signals.is_training = True
        # What a rollback or a restart goes back to has to be this run's as it starts.
        if args.resume != "auto" if resumed else args.on_nonfinite == "rollback":
            self._save_for_certain(which="first")

    # ------------------------------------------------------------------------------- every step

    def steps(self) -> list[int]:
        """The steps that are left of the epoch in which the run stands, by their number in the
        whole run: without those that a rollback passes over, and none beyond --max_steps."""
        args, progress = self.args, self.progress
        self.num_steps = steps_per_epoch(len(self.batches), args.accum_iter)
        self.first_step = progress.total_steps - progress.step  # of this epoch
        self.end_step = self.first_step + self.num_steps  # of what is done before `close_epoch`
        if args.max_steps:
            self.end_step = max(min(self.end_step, args.max_steps), progress.total_steps)
        micro_batches = (
            (step - self.first_step) * args.accum_iter + micro
            for step in progress.skipped
            for micro in range(args.accum_iter)
        )
        self.stream = self.batches.epoch(
            progress.epoch, progress.step * args.accum_iter, frozenset(micro_batches)
        )
        self.line = ProgressLine(
            f"{'round' if self.counts_iterations else 'epoch'} {progress.epoch}",
            self.num_steps,
            progress.step,
            self._pace(),
        )
        self.history.go()
        self.seen, self.since = 0, time.monotonic()
        steps = range(progress.total_steps, self.end_step)
        return [step for step in steps if step not in progress.skipped]

    def _pace(self) -> Pace:
        """Of the whole run, which stands where the epoch begins; a rollback goes back."""
        total, done = self.args.epochs * self.num_steps, self.progress.total_steps
        total = min(total, self.args.max_steps or total)
        self.whole = self.whole or Pace(total, done)
        self.whole.pass_over(done - self.whole.done)
        return self.whole

    def num_micro_batches(self, step: int) -> int:
        """How many micro-batches a step has: --accum_iter, in an epoch's last step maybe fewer."""
        accum_iter = self.args.accum_iter
        return min(accum_iter, len(self.batches) - (step - self.first_step) * accum_iter)

    def micro_batches(self, step: int) -> Iterator:
        """Load a step's micro-batches one by one; the libraries are seeded anew for each."""
        for micro in range(self.num_micro_batches(step)):
            batch = next(self.stream)
            counters = (self.args.seed, STREAM_STEP, step, micro, distributed.rank())
            seed_libraries(*counters, device=self.device)
            yield batch

    def learning_rate(self, step: int) -> float:
        """The rate of a step by the schedule, which counts iterations, or epochs with fractions."""
        epochs = self.progress.epoch + (step - self.first_step) / self.num_steps
        self.lr = scheduled_lr(step if self.counts_iterations else epochs, self.args)
        return self.lr

    def count(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Count a finished step and its losses, scalars on the device."""
        self.meters.add(step, losses)
        self.seen += self.num_micro_batches(step) * self.batches.global_size
        self.progress.step, self.progress.total_steps = step - self.first_step + 1, step + 1
        self.progress.closed = False

    def log(
        self, step: int, more: Callable[[dict[str, float]], dict[str, float]] = lambda losses: {}
    ) -> None:
        """At log steps the throughput and the mean losses since the last one, or since a later
        save, go to the terminal and to TensorBoard; at every step the progress line moves on.

        Args:
            more: called at log steps with those means, for what is shown besides, or in place of
                some that it takes out.

        Raises:
            NonFiniteLoss: a loss since the last log step was not finite.
        """
        if (step + 1) % self.args.log_every:
            return self.line.update(self.progress.step)
        numbers = self.meters.check()
        numbers |= more(numbers) | {"lr": self.lr}
        rate = self.seen / max(time.monotonic() - self.since, 1e-9)
        self.seen, self.since = 0, time.monotonic()
        scalars = numbers | {"images_per_second": rate}
        self.journal.scalars({f"train/{name}": n for name, n in scalars.items()}, step + 1)
        self.record.numbers(step + 1, scalars)
        self.line.update(self.progress.step, f"{short(rate)} images/s  {in_a_line(numbers)}")

    def save_or_stop(self, step: int) -> None:
        """After a step: save where the flags say so, and end the run where a signal does.

        Raises:
            Interrupted: after the checkpoint that a signal asked for.
        """
        every = self.args.save_every_steps
        if self.signals.agreed():
            self.save(for_certain=True)
            self.line.close()
            self.signals.leave()
        elif every and (step + 1) % every == 0:
            self.save()

    def is_finished(self) -> bool:
        """Whether all epochs, or --max_steps, are done, and the last epoch has been closed."""
        done = self.progress.epoch >= self.args.epochs
        max_steps = self.args.max_steps
        is_out_of_steps = bool(max_steps and self.progress.total_steps >= max_steps)
        return done or (is_out_of_steps and self.progress.closed)

    def save(self, keep_as: int | None = None, for_certain: bool = False) -> None:
        """Save, once it is certain that nothing bad is saved; see `Checkpointer.save`.

        Args:
            for_certain: all ranks wait until it is on the disk; a failure ends the run.
        """
        self.meters.check()
        self.check_weights()
        self.meters.store()
        if for_certain:
            self._save_for_certain(keep_as)
        else:
            self.checkpointer.save(keep_as)

    def _save_for_certain(self, keep_as: int | None = None, which: str = "last") -> None:
        """Save, and wait on all ranks for rank 0's write: torchrun ends all once one has left."""
        saved = agreement.main_does(lambda: self.checkpointer.save(keep_as, wait=True))
        require_saved(saved, self.args.output_dir, which)

    def check_weights(self) -> None:
        """Raise NonFiniteLoss where a weight is not finite; the same on all ranks."""
        norms = torch._foreach_norm([p.detach() for p in self._model().parameters()])
        if not torch.stack([norm.float() for norm in norms]).isfinite().all():
            raise NonFiniteLoss(self.progress.total_steps - 1, {"weights": float("nan")})

    def _model(self) -> nn.Module:
        return self.checkpointer.objects["model"]

    # ------------------------------------------------------------------------------- every epoch

    def close_epoch(self) -> dict[str, float]:
        """Count the epoch, unless --max_steps cut it short; return its means over all ranks."""
        self.line.close()
        self.meters.check()
        progress = self.progress
        means = self.meters.means()
        self.unclosed = progress.state_dict()
        self.epoch_of_line, progress.closed = progress.epoch, True
        self.history.stand()
        progress.step, progress.total_steps = self.end_step - self.first_step, self.end_step
        if progress.step >= self.num_steps:
            progress.epoch += 1
            progress.step = 0
            self.meters.reset()
        return means

    @contextlib.contextmanager
    def testing(self, *loaders: Batches) -> Iterator[None]:
        """Around what is done between an epoch's last step and its line in the log.

        A signal ends it: at once, or, of several ranks, at the next batch of the loaders. The run
        is saved as it was after that step, and the resumed one begins with the test.

        Raises:
            Interrupted: after the checkpoint that a signal asked for.
        """
        try:
            self.signals.breaks_off = not distributed.is_distributed()
            self._stop_where_all_know()
            for loader in loaders if distributed.is_distributed() else ():
                loader.before_batch = self._stop_where_all_know
            yield
        except Stopped:
            self.signals.breaks_off = False
            if self.unclosed is not None:
                self.progress.load_state_dict(self.unclosed)
                self.check_weights()
                self._save_for_certain()
            self.signals.leave()
        finally:
            self.signals.breaks_off = False
            for loader in loaders:
                loader.before_batch = None

    def _stop_where_all_know(self) -> None:
        if self.signals.agreed():
            raise Stopped

    def keep_best(self, scores: dict[str, float], name: str = "acc1") -> dict[str, float]:
        """Scores of the test set under their names in the log, with the best so far of `name`."""
        best = max(scores[name], self.progress.best.get(name, 0.0))
        self.progress.best = {name: best}
        return {f"test_{key}": value for key, value in scores.items()} | {f"max_{name}": best}

    def save_epoch(self) -> None:
        """Save where the flags say that this epoch is saved, and after the last one."""
        args, epoch = self.args, self.progress.epoch
        kept = epoch in args.keep_epochs and not self.progress.step  # --max_steps may cut one
        if kept or self.is_due(args.save_every_epochs):
            self.save(epoch if kept else None, for_certain=self.is_finished())

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many epochs, and after the last one, is to be done now."""
        return self.is_finished() or self.progress.epoch % every == 0

    def log_epoch(self, means: dict[str, float], extra: dict[str, float | int]) -> None:
        """Write the epoch's mean losses and what else is known to log.txt and TensorBoard."""
        numbers = {"epoch": self.epoch_of_line, "steps": self.progress.total_steps}
        numbers |= {f"train_{name}": value for name, value in means.items()} | extra
        self.journal.epoch(numbers)
        self.journal.scalars(numbers, self.progress.total_steps)

    def finish(self, **numbers: float | int | str) -> None:
        """Write results.json: the last line of the log, if any, and what else is given."""
        if not distributed.is_main():
            return
        if self.journal is None:  # an evaluation, perhaps in the folder of what it evaluates
            self.folder.set_aside([RESULTS])
            self.record.begin(self.history, self.progress)
        numbers = (self.journal.last_line() if self.journal else {}) | numbers
        found = "  ".join(f"{name} {short(value)}" for name, value in numbers.items())
        log.info("finished: %s", found)
        settings = self.args.settings
        write_results(
            os.path.join(self.args.output_dir, RESULTS), numbers, self._seconds(), self.device,
            settings.values(self.args), settings.sources, self.history.commits,
        )  # fmt: skip

    def _seconds(self) -> float | None:
        """Training time, see `History`; where nothing was trained, that of the process so far."""
        has_trained = self.journal is not None or self.history.before != 0
        return self.history.seconds if has_trained else time.monotonic() - self.started

    # --------------------------------------------------------------------------- non-finite losses

    def recover(self, error: NonFiniteLoss) -> None:
        """Write down the batch that did it; then end the run, or go back and pass over it."""
        args, step = self.args, error.total_step
        record_nonfinite_step(error, args.output_dir, self.batches, self.progress, args.accum_iter)
        skipped = sorted({*self.progress.skipped, step})
        if args.on_nonfinite == "stop":
            raise NonFiniteLoss(step, error.terms) from None
        if len(skipped) > args.max_rollbacks:
            raise RunError(
                f"{error}; --max_rollbacks {args.max_rollbacks} are used up: lower --lr, or use "
                "--amp none",
                error.status,
            ) from None
        log.error("%s: back to the last checkpoint, and past that batch", error)
        self._go_back(error)
        self.record.event("rollback", step=step, to=self.progress.total_steps, reason=str(error))
        self.progress.skipped = skipped
        self.journal.forget_after(self.progress.epoch)
        self.meters = Meters(self.progress, self.device)

    def _go_back(self, error: NonFiniteLoss) -> None:
        reason = "there is none"
        try:
            found = self.checkpointer.resume("auto")
        except UsageError as unusable:
            found, reason = False, str(unusable)
        if not found:
            raise RunError(
                f"{error}; no checkpoint in {self.args.output_dir} to go back to ({reason}): "
                "lower --lr, or use --amp none",
                EXIT_NONFINITE,
            ) from None
