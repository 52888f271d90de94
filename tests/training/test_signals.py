"""Ranks stop at the same step, whenever the signal comes."""

import signal

import pytest
import torch

from util.errors import Stopped
from util.training import signals


def stop_signal() -> signals.StopSignal:
    """As a run has it while it trains."""
    stop = signals.StopSignal()
    stop.is_training = True
    return stop


def test_outside_training_a_signal_ends_the_program_where_it_is():
    """Past every `except Exception`, and with the handlers that were there before."""
    before = signal.getsignal(signal.SIGTERM)
    signals.StopSignal()
    with pytest.raises(Stopped, match="SIGTERM: what is on the disk is kept"):
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            raise AssertionError("taken for an error") from None
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_launchers_handler_hears_of_it_first():
    heard, before = [], signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(frame))
    try:
        signals.StopSignal()
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGUSR2)
        assert heard == [None]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_signal_during_the_agreement_counts_from_the_next_step(monkeypatch):
    stop = stop_signal()
    monkeypatch.setattr(signals.distributed, "is_distributed", lambda: True)
    sent = []

    def all_reduce(flag: torch.Tensor, op, group) -> None:
        sent.append(int(flag))
        signal.raise_signal(signal.SIGUSR2)  # after this rank has sent that it goes on

    monkeypatch.setattr(signals.dist, "all_reduce", all_reduce)
    try:
        assert not stop.agreed()
        assert stop.agreed()
    finally:
        stop.restore()
    assert sent == [0, signal.SIGUSR2]


def test_a_rank_without_a_signal_stops_with_the_others(monkeypatch):
    stop = stop_signal()
    monkeypatch.setattr(signals.distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(
        signals.dist, "all_reduce", lambda flag, op, group: flag.fill_(signal.SIGTERM)
    )
    try:
        assert stop.agreed() and stop.received == signal.SIGTERM
    finally:
        stop.restore()


def test_a_closed_terminal_stops_the_run_and_nohup_does_not():
    before = signal.getsignal(signal.SIGHUP)
    try:
        stop = stop_signal()
        signal.raise_signal(signal.SIGHUP)
        assert stop.agreed() and stop.received == signal.SIGHUP
        stop.restore()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        stop = stop_signal()
        signal.raise_signal(signal.SIGHUP)
        assert not stop.agreed() and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        stop.restore()
    finally:
        signal.signal(signal.SIGHUP, before)
