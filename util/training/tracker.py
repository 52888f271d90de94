"""What TensorBoard gets, to Weights & Biases or trackio, too: --log_to."""

import argparse
import json
import logging
import os
import secrets
from collections.abc import Mapping

from util.cluster import distributed
from util.errors import UsageError, first_line

log = logging.getLogger(__name__)

PROJECT = "mi-mae"
NAME_FILE = "tracker.json"  # the run's name there, by which a requeued run goes on


class Tracker:
    """A run at a service, on rank 0; one that was resumed goes on under its name.

    What goes wrong there while a run trains is said once, and ends nothing.

    Args:
        to: SERVICE or SERVICE:PROJECT, as `util.flags.parser.service` takes it.
        config: plain values, as the flags'.

    Raises:
        UsageError: the service does not take the run.
    """

    def __init__(self, to: str, output_dir: str, config: Mapping[str, object]):
        service, _, project = to.partition(":")
        self.module, self.is_lost = _imported(service), False
        name = _name_of(output_dir)
        about = {"project": project or PROJECT, "config": dict(config), "resume": "allow"}
        if service == "wandb":
            shown = os.path.basename(os.path.abspath(output_dir))
            about |= {"id": name, "name": shown, "dir": output_dir}
        else:
            about |= {"name": name}
        try:
            self.module.init(**about)
        except Exception as error:  # whatever a service without a login or a network raises
            raise UsageError(
                f"--log_to {to} cannot begin ({first_line(error)}): log in, or leave it away"
            ) from None

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        if self.is_lost:
            return
        try:
            self.module.log(dict(numbers), step=step)
        except Exception as error:  # whatever a service raises
            self.is_lost = True
            log.error("--log_to is lost (%s): training goes on", first_line(error))

    def close(self) -> None:
        """Send what is left."""
        try:
            self.module.finish()
        except Exception as error:  # whatever a service raises
            log.error("--log_to did not end well (%s)", first_line(error))


def open_tracker(args: argparse.Namespace) -> Tracker | None:
    """The tracker that the flags ask for, on rank 0; None where they ask for none."""
    if not args.log_to or not distributed.is_main():
        return None
    return Tracker(args.log_to, args.output_dir, args.settings.every(args))


def _imported(service: str):
    if service == "wandb":
        import wandb

        return wandb
    import trackio

    return trackio


def _name_of(output_dir: str) -> str:
    """The run's name at the service: what an earlier start has left in the folder, or a new one."""
    path = os.path.join(output_dir, NAME_FILE)
    try:
        with open(path) as file:
            return str(json.load(file)["name"])
    except (OSError, ValueError, KeyError, TypeError):
        name = f"{os.path.basename(os.path.abspath(output_dir))}-{secrets.token_hex(4)}"
    try:
        with open(path, "w") as file:
            json.dump({"name": name}, file)
    except OSError as error:
        log.warning("%s cannot be written (%s): a requeued run begins anew there", path, error)
    return name
