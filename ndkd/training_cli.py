"""fit, validate, test and predict: Lightning's command line, with run folders and one-line errors."""

import logging
import os
import re
import signal
import sys
import traceback
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

import ndkd.detection  # so that a config can say DetectionDistillationModule
import ndkd.losses  # and NDLoss  # noqa: F401
from ndkd.build_errors import in_one_line
from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.detection_pictures import DetectionPictures
from ndkd.callbacks.feature_statistics import FeatureStatistics
from ndkd.callbacks.run_recorder import AtomicCheckpoints, RunRecorder, checkpoint_callbacks, in_order
from ndkd.cli import values_of, without_option
from ndkd.data.configured import DATA_MODULES, has_test
from ndkd.distillation import DistillationModule
from ndkd.errors import Damaged, NdkdError, words_of
from ndkd.lock import locked
from ndkd.memory import keep_freed_memory
from ndkd.models.checkpoint import check_run_checkpoint, hyper_parameter, read_checkpoint
from ndkd.nulls import check_nulls
from ndkd.parser_errors import one_line
from ndkd.runs import Run, check_folder, differences
from ndkd.stopping import PARENT, Stopped, parent_of, stop
from ndkd.trainer_options import check_length, check_trainer
from ndkd.trust import Trust


@in_one_line()
def run_command(arguments: list[str]) -> int:
    """Run one of the four commands; the exit status."""
    quiet()
    keep_freed_memory()
    sys.argv[1:] = with_stored_config(arguments)  # other ranks are started with the same
    try:
        try:
            TrainingCLI(
                DistillationModule,
                L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"logger": False},
                parser_kwargs={"exit_on_error": False, arguments[0]: {"exit_on_error": False}},
                load_from_checkpoint_support=False,
            )
        finally:  # close the bars that an error leaves open, so that the message gets a line of its own
            for bar in list(tqdm._instances):
                bar.close()
    except ArgumentError as error:
        raise NdkdError(one_line(str(error), known_classes())) from error
    except MisconfigurationException as error:  # the trainer's own word on its options
        raise NdkdError(f"trainer: {error}") from error
    except ValueError as error:
        cause = error  # the parser lists all that an entry might have been, once for each level
        while isinstance(cause, ValueError) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ModuleNotFoundError):  # of a logger, for example
            raise NdkdError(str(cause)) from error
        if isinstance(cause, NdkdError):
            raise cause from error
        if re.search("Parser key|Does not validate", str(error)):  # of an entry that is made after all are read
            raise NdkdError(one_line(str(error), known_classes())) from error
        raise
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if "find_unused_parameters" in str(error):
            raise NdkdError(
                "no loss reaches some of the student's parameters: add one on its logits, or set trainer.strategy: "
                "ddp_find_unused_parameters_true"
            ) from error
        if not isinstance(error, TorchDynamoException):
            raise
        why = str(getattr(error, "inner_exception", error)).splitlines()[0]
        raise NdkdError(f"a model cannot be compiled: {why}; leave out its compile") from error
    except SystemExit as exit:  # Lightning's way out after Ctrl-C, and the parser's after its help
        if isinstance(exit, SIGTERMException):
            stop.number = signal.SIGTERM
        if exit.code == 1 or stop.number:
            raise Stopped from exit
        return int(exit.code or 0)
    return 0


GOES_ON = "continues from the last finished epoch"


class TrainingCLI(LightningCLI):
    """Lightning's CLI with a run folder per configuration."""

    def __init__(self, *args: Any, **options: Any):
        with ExitStack() as self.until_the_end:
            super().__init__(*args, **options)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The one that is asked for: a parser for each of the four would take time at every start."""
        return {sys.argv[1]: LightningCLI.subcommands()[sys.argv[1]]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=Path | None, default=None, help="The run folder.")
        parser.add_lightning_class_args(ClassMeans, "class_means")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters win; here the configuration does."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise NdkdError(f"seed_everything: {error}") from error

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.run_folder = Run(config.run_dir or default_run_dir(sys.argv[1:], config.seed_everything))
        config.run_dir = self.run_folder.path
        config.trainer.default_root_dir = str(self.run_folder.path)
        for logger in config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]:
            if "save_dir" in getattr(logger, "init_args", {}):
                logger.init_args.save_dir = self.run_folder.path
        if self.subcommand != "fit":
            config.trainer.logger = False  # what is measured afterwards is printed
        check_nulls(config, {"trainer": L.Trainer, "class_means": ClassMeans})
        check_trainer(config.trainer)
        if self.subcommand == "fit":
            check_length(config.trainer)
        if self.subcommand == "fit" and not config.trainer.fast_dev_run:  # on every rank, or the others would wait
            self._check_run_folder(config.ckpt_path)
        config.ckpt_path = self._checkpoint_file(config.ckpt_path)

    def _check_run_folder(self, resume: str | None) -> None:
        folder = self.run_folder
        if folder.path == Path():
            raise NdkdError("run_dir: wanted a folder of its own for the run, got the current one")
        check_folder(folder.path, "--run_dir DIR")
        if rank_zero_only.rank == 0:
            taken = locked(folder.path, "run folder", "choose another with --run_dir DIR")
            folder.lock = self.until_the_end.enter_context(taken)
            self.until_the_end.callback(end_of_run, folder)
            stop.advice = lambda: f"--ckpt_path last {GOES_ON}" if folder.is_used else "no epoch was finished"
        if folder.is_used and resume is None:
            raise NdkdError(
                f"run folder {folder.path} holds a run: continue it with --ckpt_path last, or start afresh elsewhere "
                "with --run_dir DIR"
            )
        if resume == "last" and not folder.is_used:
            raise NdkdError(
                f"run folder {folder.path} has no finished epoch to continue from: start afresh without --ckpt_path, "
                "or name the run's folder with --run_dir DIR"
            )

    def _checkpoint_file(self, name: str | None) -> str | None:
        run, student = self.run_folder, self.config[self.subcommand].model.init_args.student
        as_it_is = (student.get("checkpoint") or student.get("pretrained")) and not run.is_used
        if name is None and (self.subcommand == "fit" or as_it_is):
            return None  # a run that starts, or a model that is measured with the weights it brings
        name = str(run.checkpoint(name or "last")) if name in (None, "last", "best") else name
        if self.subcommand == "fit" and Path(name).resolve() != run.checkpoint("last").resolve():
            raise NdkdError(
                f"fit continues a run from its last checkpoint only, not from {name}: give --ckpt_path last, or start "
                "from these weights with model.init_args.student.checkpoint"
            )
        if not Path(name).is_file():
            raise NdkdError(f"checkpoint {name} does not exist; run ndkd fit first, or name another with --ckpt_path")
        content = read_checkpoint(name)
        if not {"state_dict", "pytorch-lightning_version"} <= content.keys():
            raise NdkdError(
                f"checkpoint {name} is none of ndkd fit's; give plain weights as model.init_args.student.checkpoint"
            )
        check_run_checkpoint(content, name)
        if self.subcommand != "fit" and "name" in student:  # its weights and normalisation are in the checkpoint
            student.checkpoint, student.pretrained = None, False
            student.mean = student.mean or hyper_parameter(content, "student", "mean")
            student.std = student.std or hyper_parameter(content, "student", "std")
        return name

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            resolved = self.config.fit.clone()
            del resolved["ckpt_path"], resolved["config"]
            text = self._parser("fit").dump(resolved, skip_unset=False, skip_validation=True)
            run = self.run_folder
            if self.config.fit.ckpt_path and rank_zero_only.rank == 0:
                _say_what_changed(run, text)
            callbacks = [
                *callbacks,
                FeatureStatistics(run),
                DetectionPictures(run),
                RunRecorder(run, text),
                *checkpoint_callbacks(run, self.model.headline[0]),
            ]
            config["plugins"] = [*(config["plugins"] or []), AtomicCheckpoints()]
        else:
            config["enable_checkpointing"] = False
        check_strategy(config["strategy"])
        os.environ |= parent_of(getattr(signal, "SIGKILL", signal.SIGTERM))  # of other ranks, which may wait for us
        self.until_the_end.callback(os.environ.pop, PARENT, None)
        try:
            trainer = super()._instantiate_trainer(config, callbacks)
            # torchrun's processes would each train alone where the trainer was told of one device
            environment = TorchElasticEnvironment() if TorchElasticEnvironment.detect() else None
            environment = getattr(trainer.strategy, "cluster_environment", environment)
            if environment is not None:
                environment.validate_settings(trainer.num_devices, trainer.num_nodes)
        except NdkdError:
            raise
        except Exception as error:  # of whatever kind the trainer's accelerators and plugins raise
            raise NdkdError(f"trainer: {words_of(error)}") from error
        # it would broadcast from the handler, between other collectives; ours is heard at once
        trainer._signal_connector._sigterm_notifier_fn = lambda *_: None
        if config["sync_batchnorm"] and trainer.strategy.root_device.type == "cpu":
            raise NdkdError("trainer.sync_batchnorm: exists on GPUs only; leave it out")
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            frames = traceback.walk_tb(error.__traceback__)
            if any(Path(frame.f_code.co_filename).name == "checkpoint_connector.py" for frame, _ in frames):
                why = f"{type(error).__name__} {error}".splitlines()[0]
                file = self.config[subcommand].ckpt_path
                raise NdkdError(f"checkpoint {file} is damaged: {why}; take another checkpoint of the run") from error
            raise

    def before_fit(self) -> None:
        for logger in self.trainer.loggers:
            if hasattr(logger, "is_waiting"):  # Weights & Biases
                logger.is_waiting = True

    def after_fit(self) -> None:
        """Test the last and the best weights, and say where everything is."""
        run = self.run_folder
        if self.trainer.fast_dev_run:
            return
        kept = [name for name in ("last", "best") if run.checkpoint(name).exists()]  # best wants validation images
        kept = self.trainer.strategy.broadcast(kept)  # another machine may see a new file late
        if not kept:
            raise NdkdError("no epoch was trained: there was no batch of training images")
        results = {}
        if has_test(self.datamodule) and self.trainer.limit_test_batches:
            loggers, self.trainer.loggers = self.trainer.loggers, []  # both tests have the same names
            results = {name: self._test(run.checkpoint(name)) for name in kept}
            log_results(loggers, results, self.trainer.global_step)
        if not self.trainer.is_global_zero:
            return
        run.check_kept()
        run.update_status(state="finished", error=None, results=results)
        on_test = getattr(self.datamodule, "validates_on_test", False)
        chosen_on = "the same images" if on_test else "validation"
        labels = {"last": "(last epoch, {})", "best": f"(best on {chosen_on}, epoch {{}})"}
        if results:
            metric, word = self.model.headline
            shown = [f"{r[f'test/{metric}']:.2%} {labels[name].format(r['epoch'])}" for name, r in results.items()]
            print(f"test {word}: {', '.join(shown)}")
        print(f"run folder: {run.path}")

    def _test(self, checkpoint: Path) -> dict[str, float]:
        metrics = self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
        )
        return {"epoch": read_checkpoint(checkpoint)["epoch"], **metrics[0]}

    def predict(self, **kwargs: Any) -> None:
        """Write the predictions of every image into the run folder."""
        rows = in_order(self.trainer, [row for batch in self.trainer.predict(**kwargs) for row in batch])
        if files := getattr(self.datamodule, "predict_files", None):
            rows = [{"file": file, **row} for file, row in zip(files, rows, strict=False)]
        if self.trainer.is_global_zero:
            print(f"predictions: {self.run_folder.write_predictions(rows)} ({len(rows)} images)")


def end_of_run(run: Run) -> None:
    """However it ends, nothing runs in the folder any more: one that was killed may have left this to the next."""
    if run.is_kept and run.status().get("state") == "running":
        run.update_status(state="interrupted")


def log_results(loggers: list[Logger], results: dict[str, dict[str, float]], step: int) -> None:
    """Log the test of each checkpoint, as ``test/last_acc1`` and the like, and as a table where a logger can."""
    named = {}
    for kind, row in results.items():
        named |= {f"test/{kind}_{name.removeprefix('test/')}": value for name, value in row.items()}
    table = ["checkpoint", *results["last"]], [[kind, *row.values()] for kind, row in results.items()]
    for logger in loggers:
        logger.log_metrics(named, step)
        if hasattr(logger, "log_table"):
            logger.log_table("test/results", *table, step=step)
        logger.finalize("success")


def with_stored_config(arguments: list[str]) -> list[str]:
    """Where a checkpoint file is given and no configuration, take the one in its run folder, if it may be trusted."""
    command, *options = arguments
    trusted, checkpoint = values_of(("--trust",), options), values_of(("--ckpt_path",), options)
    if command != "fit":
        arguments = [command, *(options := without_option("--trust", options))]
    if values_of(("--config", "-c"), options):
        return arguments
    if command == "fit" or not checkpoint:
        if any(option.startswith(("--help", "--model", "--data", "--print_config")) for option in options):
            return arguments
        raise NdkdError(f"no configuration: give --config FILE; see ndkd {command} --help")
    run = Run.of_checkpoint(checkpoint[-1])
    if not Path(checkpoint[-1]).is_file():
        raise NdkdError(f"checkpoint {checkpoint[-1]} does not exist; correct --ckpt_path")
    if run is None:
        raise NdkdError(f"checkpoint {checkpoint[-1]} does not lie in a run folder: give its --config FILE too")
    config = run.read_config()
    if isinstance(config.get("trainer"), dict):
        config["trainer"]["logger"] = False  # what is measured afterwards is printed
    Trust(trusted).check_config(config, str(run.config))
    # itself, not its file, which might be another by the time it is parsed
    text = yaml.safe_dump(config, default_flow_style=True, sort_keys=False, width=float("inf"))
    return [command, "--config", text, "--run_dir", str(run.path), *options]


def _say_what_changed(run: Run, config: str) -> None:
    """Before a resume, a line for each entry of the configuration that differs from the run's so far."""
    try:
        before = run.read_config() if run.config.is_file() else {}
    except Damaged as error:  # the run that starts writes it
        return print(f"ndkd: {error}", file=sys.stderr)
    for name, (value, old) in differences(yaml.safe_load(config), before).items():
        if name != "trainer.max_epochs":
            kept = "; a resumed optimizer keeps its own" if ".optimizer." in name else ""
            old = str(old)[:200]
            print(f"ndkd: {name} is {str(value)[:200]} in the configuration, {old} in the run so far{kept}")
    return None


def check_strategy(strategy: str | Strategy) -> None:
    """Raise ``NdkdError`` for a strategy that splits models, or whose processes do not run the command line."""
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    supported = "auto|single_device|SingleDeviceStrategy|ddp(_find_unused_parameters_(true|false))?|DDPStrategy"
    if not re.fullmatch(supported, name):
        raise NdkdError(
            f"trainer.strategy: wanted auto, single_device, ddp or ddp_find_unused_parameters_true, got {name}"
        )


def known_classes() -> dict[str, list[str]]:
    """Names to suggest, by the entry of a configuration that wants a class."""
    return {
        "loss": [*(name for name in vars(ndkd.losses) if name.endswith("Loss")), "CrossEntropyLoss"],
        "optimizer": _subclasses(torch.optim, torch.optim.Optimizer),
        "lr_scheduler": _subclasses(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler),
        "data": DATA_MODULES,
        "model": ["DistillationModule", "DetectionDistillationModule"],
    }


def _subclasses(module: Any, base: type) -> list[str]:
    return [name for name, kind in vars(module).items() if isinstance(kind, type) and base in kind.__mro__[1:]]


def default_run_dir(arguments: list[str], seed: int) -> Path:
    """``runs/`` and the names of the configs; overlays of ``loggers`` and ``trainer`` folders do not count.

    >>> default_run_dir(["fit", "--config", "configs/digits/kd++.yaml"], seed=1).as_posix()
    'runs/digits/kd++-seed1'
    >>> default_run_dir(["fit", "--config", "configs/digits/student.yaml", "--config", "mine.yaml"], seed=0).as_posix()
    'runs/digits/student,mine'
    """
    names = []
    for config in map(Path, values_of(("--config", "-c"), arguments)):
        if config.parent.name not in ("loggers", "trainer"):  # how a run is made, not what
            parts = config.with_suffix("").parts
            whole = "/".join(parts[parts.index("configs") + 1 :]) if "configs" in parts[:-1] else parts[-1]
            names.append(parts[-1] if names else whole)
    return Path("runs", (",".join(names) or "unnamed") + (f"-seed{seed}" if seed else ""))


def quiet() -> None:
    """Keep Lightning's tips, and its warnings about what is meant here, off the screen."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for meant in (
        "in eval mode",
        "many workers",
        "is not empty",
        "treespec, LeafSpec",
        "logging interval",
        "could not find the monitored key",
        "callbacks used to create the checkpoint",
        "not supported by the model summary",
        "sync_dist=True",
    ):
        warnings.filterwarnings("ignore", f".*{meant}")
