"""What the libraries that build and run a training raise for a mistake in its configuration, in one line."""

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch
import torch
from jsonargparse import ArgumentError
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from torchvision.transforms import v2

import ndkd.losses
from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.teacher_cache import TeacherCache
from ndkd.configuration.parser_errors import failed_term, one_line, parameters_of
from ndkd.data.from_config import DATA_MODULES
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError
from ndkd.stopping import Stopped, stop


@contextmanager
def in_our_words(words: Sequence[str] = ()) -> Iterator[None]:
    """Make an ``NdkdError`` of what the parser, the trainer and the compiler raise, and ``Stopped`` of a signal.

    Args:
        words: of the command line.

    Raises:
        NdkdError: says which entry is wrong and why.
        SystemExit: after the parser's help.
    """
    try:
        yield
    except ArgumentError as error:
        raise NdkdError(one_line(str(error), known_classes(), known_entries(), words)) from error
    except MisconfigurationException as error:  # the trainer's own word on its options
        raise NdkdError(f"trainer: {error}") from error
    except ValueError as error:
        raise _of_an_entry(error) or error from error.__cause__
    except RuntimeError as error:
        raise _of_a_model(error) or error from error.__cause__
    except SystemExit as exit:  # Lightning's way out after Ctrl-C, and the parser's after its help
        if isinstance(exit, SIGTERMException):
            stop.number = signal.SIGTERM
        if exit.code == 1 or stop.number:
            raise Stopped from exit
        raise


def _of_an_entry(error: ValueError) -> NdkdError | None:
    cause: BaseException = error  # the parser lists all that an entry might have been, once for each level
    while isinstance(cause, ValueError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, NdkdError):
        term = failed_term(str(error))
        return NdkdError(f"loss {term}: {cause}") if term else cause
    if isinstance(cause, ModuleNotFoundError):  # of a logger, for example
        return NdkdError(str(cause))
    if re.search("Parser key|Does not validate", str(error)):  # of an entry that is made after all are read
        return NdkdError(one_line(str(error), known_classes(), known_entries()))
    return None


def _of_a_model(error: RuntimeError) -> NdkdError | None:
    from torch._dynamo.exc import TorchDynamoException

    if "find_unused_parameters" in str(error):
        return NdkdError(
            "no loss reaches some of the student's parameters: add one on its logits, or set trainer.strategy: "
            "ddp_find_unused_parameters_true"
        )
    if not isinstance(error, TorchDynamoException):
        return None
    why = str(getattr(error, "inner_exception", error)).splitlines()[0]
    return NdkdError(f"a model cannot be compiled: {why}; leave out its compile")


def known_classes() -> dict[str, list[str]]:
    """Names to suggest, by the entry of a configuration that wants a class."""
    return {
        "loss": [*(name for name in vars(ndkd.losses) if name.endswith("Loss")), "CrossEntropyLoss"],
        "optimizer": _subclasses(torch.optim, torch.optim.Optimizer),
        "lr_scheduler": _subclasses(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
        "data": DATA_MODULES,
        "transforms": _subclasses(v2, v2.Transform),
        "model": ["DistillationModule", "DetectionDistillationModule"],
        "callbacks": _subclasses(lightning.pytorch.callbacks, lightning.pytorch.Callback),
        "logger": [
            "ndkd.loggers.WandbLogger",
            "ndkd.loggers.MLFlowLogger",
            *_subclasses(lightning.pytorch.loggers, Logger),
        ],
        "plugins": _subclasses(lightning.pytorch.plugins, object),
    }


def known_entries() -> dict[str, list[str]]:
    """Names to suggest, by the block of a configuration whose entries they are, ``""`` for the blocks themselves."""
    options = ["config", "ckpt_path", "run_dir", "seed_everything", "print_config", "trust", "images", "verbose"]
    blocks = {"trainer": lightning.pytorch.Trainer, "class_means": ClassMeans}
    blocks |= {"teacher_cache": TeacherCache, "model.init_args": DistillationModule}
    return {"": [*options, "model", "data"], **{name: parameters_of(kind) for name, kind in blocks.items()}}


def _subclasses(module: Any, base: type) -> list[str]:
    return [name for name, kind in vars(module).items() if isinstance(kind, type) and base in kind.__mro__[1:]]
