"""Lightning's command line with a run folder per configuration."""

import os
import signal
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import ndkd.distillation.detection  # so that a config can say DetectionDistillationModule
import ndkd.losses  # and NDLoss  # noqa: F401
from ndkd.callbacks.base import Waits
from ndkd.callbacks.checkpoints import AtomicCheckpoints
from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.epoch_lines import wants_lines
from ndkd.callbacks.image_counts import ImageCounts
from ndkd.callbacks.run_recorder import in_order
from ndkd.callbacks.teacher_cache import TeacherCache
from ndkd.commands.class_accuracy import of_each_class, of_unmeasured
from ndkd.commands.final_test import log_results
from ndkd.commands.fit_callbacks import of_a_run, of_the_start
from ndkd.commands.run_state import check_epochs_left, end_of_run, say_what_changed
from ndkd.commands.stored_config import in_full
from ndkd.commands.trainer_options import check_length, check_strategy, check_trainer
from ndkd.configuration.arguments import default_run_dir, values_of
from ndkd.configuration.empty_entries import check_arguments, check_blocks
from ndkd.configuration.nulls import check_nulls
from ndkd.configuration.overlays import CONFIG
from ndkd.data.base import HasClassCounts
from ndkd.data.from_config import has_test
from ndkd.distillation.module import DistillationModule
from ndkd.errors import NdkdError, words_of
from ndkd.files import check_folder
from ndkd.lock import locked
from ndkd.models.checkpoint import read_checkpoint
from ndkd.models.checkpoint_files import checkpoint_file
from ndkd.models.run_checkpoint import Known, check_run_checkpoint, is_run_checkpoint
from ndkd.runs import Run
from ndkd.stopping import PARENT, parent_of, stop

GOES_ON = "continues from the last finished epoch"


class TrainingCLI(LightningCLI):
    """Lightning's CLI with a run folder per configuration."""

    def __init__(self, given: list[str]):
        """Run a command.

        Args:
            given: the words of the command line.
        """
        self.given, command = given, given[0]
        options = {"exit_on_error": False, "allow_abbrev": False}
        with ExitStack() as self.until_the_end:
            super().__init__(
                DistillationModule,
                L.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                save_config_callback=None,
                seed_everything_default=0,
                trainer_defaults={"logger": False},
                parser_kwargs={**options, command: options},
                load_from_checkpoint_support=False,
                args=in_full(given),
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for: a parser for each of the four would take time at every start."""
        return {self.given[0]: LightningCLI.subcommands()[self.given[0]]}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without Lightning's warning that these are not the words of the command line."""
        command, configs = self.given[0], values_of(CONFIG, self.given)
        options = [a.dest for a in self._parser(command)._actions if not a.dest.endswith(".help")]
        check_blocks(configs, options)
        self.config = parser.parse_args(args)
        check_arguments(configs, {block: self.config[command].get(block) for block in ("model", "data")})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=Path | None, default=None, help="The run folder.")
        parser.add_argument("--published", type=str | None, default=None, help="The published figure of this method.")
        parser.add_lightning_class_args(TeacherCache, "teacher_cache")
        parser.add_lightning_class_args(ClassMeans, "class_means")

    def _parse_ckpt_path(self) -> None:
        """Lightning would let a checkpoint's hyper-parameters win; here the configuration does."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise NdkdError(f"seed_everything: {error}") from error

    def resolved(self) -> str:
        """The whole configuration as YAML."""
        resolved = self.config[self.subcommand].clone()
        del resolved["ckpt_path"], resolved["config"]
        return self._parser(self.subcommand).dump(resolved, skip_unset=False, skip_validation=True)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.run_folder = Run(config.run_dir or default_run_dir(self.given, config.seed_everything))
        config.run_dir = self.run_folder.path
        config.trainer.default_root_dir = str(self.run_folder.path)
        for logger in config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]:
            if "save_dir" in getattr(logger, "init_args", {}):
                logger.init_args.save_dir = self.run_folder.path
        if self.subcommand != "fit":
            config.trainer.logger = False  # what is measured afterwards is printed
        check_nulls(config, {"trainer": L.Trainer, "class_means": ClassMeans, "teacher_cache": TeacherCache})
        check_trainer(config.trainer)
        if self.subcommand == "fit":
            check_length(config.trainer)
        if self.keeps_a_run(config.trainer):
            self._check_run_folder(config.ckpt_path)  # on every rank, or the others would wait
        config.ckpt_path = self._checkpoint_file(config.ckpt_path)

    def keeps_a_run(self, trainer_options: Any) -> bool:  # whether what is done goes into the run folder
        return self.subcommand == "fit" and not trainer_options["fast_dev_run"]

    def _check_run_folder(self, resume: str | None) -> None:
        folder = self.run_folder
        if folder.path == Path():
            raise NdkdError("run_dir: wanted a folder of its own for the run, got the current one")
        check_folder(folder.path, "--run_dir DIR")
        if _is_rank_zero():
            taken = locked(folder.path, "run folder", "choose another with --run_dir DIR")
            folder.lock = self.until_the_end.enter_context(taken)
            self.until_the_end.push(lambda kind, error, trace: end_of_run(folder, error))
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
        if not (file := checkpoint_file(name)).is_file():
            raise NdkdError(f"checkpoint {name} does not exist; run ndkd fit first, or name another with --ckpt_path")
        content = read_checkpoint(name)
        if not is_run_checkpoint(content):
            raise NdkdError(
                f"checkpoint {name} was not written by ndkd fit; give plain weights as "
                "model.init_args.student.checkpoint"
            )
        check_run_checkpoint(content, name)
        if self.subcommand == "fit":
            check_epochs_left(content, self.config.fit.trainer.max_epochs)
        if self.subcommand != "fit" and "name" in student:  # its weights and normalisation are in the checkpoint
            student.checkpoint, student.pretrained = None, False
            known = Known.of(content).student
            student.mean = student.mean or known.get("mean")
            student.std = student.std or known.get("std")
        return str(file)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        writes_lines = wants_lines(config)
        if not config["fast_dev_run"] and (self.subcommand != "fit" or self.keeps_a_run(config)):
            callbacks = [*callbacks, ImageCounts(self.run_folder)]
        if self.subcommand == "fit":
            callbacks = [*callbacks, *of_the_start(config)]
        if self.keeps_a_run(config):
            text, run = self.resolved(), self.run_folder
            if self.config.fit.ckpt_path and _is_rank_zero():
                say_what_changed(run, text)
            callbacks = [*callbacks, *of_a_run(run, text, self.model.headline[0], writes_lines)]
            config["plugins"] = [*(config["plugins"] or []), AtomicCheckpoints()]
        else:
            config["enable_checkpointing"] = False
            if writes_lines:
                config["enable_progress_bar"] = False
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
        trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
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
            if isinstance(logger, Waits):  # Weights & Biases
                logger.is_waiting = True

    def after_fit(self) -> None:
        """Test the last and the best weights, and say where everything is."""
        run = self.run_folder
        if getattr(self.trainer, "fast_dev_run", False):
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
        if results and not isinstance(self.datamodule, HasClassCounts):  # others have said it at the start
            self._say(of_unmeasured(self.model, "test"))
        print(f"run folder: {run.path}")

    def _test(self, checkpoint: Path) -> dict[str, float]:
        metrics = self.trainer.test(
            self.model, datamodule=self.datamodule, ckpt_path=str(checkpoint), verbose=False, weights_only=True
        )
        return {"epoch": read_checkpoint(checkpoint)["epoch"], **metrics[0]}

    def after_validate(self) -> None:
        self._say(of_each_class(self.model) + of_unmeasured(self.model, "validation"))

    def after_test(self) -> None:
        self._say(of_each_class(self.model) + of_unmeasured(self.model, "test"))

    def _say(self, lines: list[str]) -> None:
        if lines and self.trainer.is_global_zero:
            print(*lines, sep="\n")

    def predict(self, **kwargs: Any) -> None:
        """Write the predictions of every image into the run folder."""
        rows = in_order(self.trainer, [row for batch in self.trainer.predict(**kwargs) or () for row in batch])
        if files := getattr(self.datamodule, "predict_files", None):
            rows = [{"file": file, **row} for file, row in zip(files, rows, strict=False)]
        if self.trainer.is_global_zero:
            print(f"predictions: {self.run_folder.write_predictions(rows)} ({len(rows)} images)")


def _is_rank_zero() -> bool:  # before there is a trainer that knows
    return getattr(rank_zero_only, "rank", 0) == 0
