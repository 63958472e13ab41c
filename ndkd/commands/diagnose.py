"""``ndkd diagnose``: a look at teacher, labels, embeddings and loss terms before a training."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Checkpoint

from ndkd.callbacks.class_means import ClassMeans
from ndkd.callbacks.teacher_cache import TeacherCache
from ndkd.commands.diagnose_embeddings import Embeddings, embeddings
from ndkd.commands.diagnose_page import MARK, WEIGHTS, write_overlay, write_page
from ndkd.commands.diagnose_sample import Sample, class_means, sample
from ndkd.commands.diagnose_teacher import (
    LabelConflicts,
    TeacherFigures,
    label_conflicts,
    reordered_accuracy,
    teacher_figures,
    teacher_warnings,
)
from ndkd.commands.diagnose_words import lines
from ndkd.commands.report import check_place
from ndkd.commands.training import run_command
from ndkd.commands.training_cli import TrainingCLI
from ndkd.configuration.arguments import default_run_dir
from ndkd.distillation.batches import check_last_batch
from ndkd.distillation.proxy_run import MeasuredTerms, measure_terms
from ndkd.distillation.shares import check_share, check_shares
from ndkd.distillation.step_output import ONE
from ndkd.errors import NdkdError, shortened
from ndkd.runs import Run

LEAST = 10  # images of a sample


def diagnose(arguments: list[str]) -> int:
    """Look at a training before it begins; the exit status.

    Args:
        arguments: the options of ``ndkd fit`` and, of its own, ``--samples N``, ``--share TERM=FRACTION …`` and
            ``--out FOLDER``.

    Raises:
        NdkdError: a mistake in them, or in the configuration, as ``ndkd fit`` finds it.
    """
    options, others = _parsed(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NdkdError("diagnose runs in one process: start it without torchrun or srun")
    return run_command(["fit", *others], lambda given: DiagnoseCLI(given, options))


@dataclass
class Options:
    """Of the command itself.

    Args:
        samples: images of each split.
        shares: that terms, by name, are to have.
        out: folder for the page.
    """

    samples: int
    shares: dict[str, float]
    out: Path | None


@dataclass
class Diagnosis:
    """Everything that was found; ``teacher`` by split, None where it cannot be judged."""

    name: str
    objective: str
    class_names: list[str]
    training: Sample
    validation: Sample | None
    teacher: dict[str, TeacherFigures | None]
    conflicts: LabelConflicts
    embeddings: Embeddings
    has_projector: bool
    terms: MeasuredTerms
    shares: dict[str, float]
    warnings: list[str]


class DiagnoseCLI(TrainingCLI):
    """Builds what ``ndkd fit`` builds, by one process and with no trace in the run folder, and looks at it."""

    def __init__(self, given: list[str], options: Options):
        self.options = options
        super().__init__(given)

    def keeps_a_run(self, trainer_options: Any) -> bool:
        return False

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.ckpt_path:
            raise NdkdError("diagnose looks at what a training starts from: leave --ckpt_path out")
        terms = config.model.init_args.losses or {}
        check_shares(self.options.shares, terms)
        if off := [name for name in self.options.shares if terms[name].weight == 0]:
            raise NdkdError(f"share: {shortened(off)} has weight 0 and is left out of the objective; give it another")
        run_dir = Path(config.run_dir or default_run_dir(self.given, config.seed_everything))
        self.out = (self.options.out or run_dir.with_name(f"{run_dir.name}-diagnosis")).resolve()
        check_place(self.out, MARK, (".yaml",))
        self.name = run_dir.name
        self._for_one_process(config.trainer)
        for role in ("teacher", "student"):  # compiling takes longer than all that is looked at
            model = config.model.init_args.get(role)
            if model is not None and "compile" in model:
                model.compile = None
        super().before_instantiate_classes()

    def _for_one_process(self, trainer: Any) -> None:
        several = {
            name: trainer[name]
            for name, one in {"devices": ("auto", 1, "1"), "num_nodes": (1,), "strategy": ("auto",)}.items()
            if trainer[name] not in one
        }
        if several:
            said = ", ".join(f"trainer.{name} {value}" for name, value in several.items())
            print(f"ndkd: diagnose runs in one process, whatever the configuration says ({said})")
        trainer.devices, trainer.num_nodes, trainer.strategy, trainer.sync_batchnorm = 1, 1, "auto", False
        trainer.logger, trainer.enable_progress_bar, trainer.enable_model_summary = False, False, False
        trainer.num_sanity_val_steps, trainer.min_epochs, trainer.min_steps = 0, None, None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[L.Callback]) -> L.Trainer:
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        config["callbacks"] = [callback for callback in given if not isinstance(callback, Checkpoint)]
        from_file = [callback for callback in callbacks if isinstance(callback, ClassMeans) and callback.file]
        others = [callback for callback in callbacks if not isinstance(callback, ClassMeans | TeacherCache)]
        self.look = Look(self.options, self.name)
        return super()._instantiate_trainer(config, [*others, *from_file, self.look])

    def before_fit(self) -> None:
        if not self.model.has_embeddings:
            raise NdkdError("diagnose looks at classifiers: of a detector it can say nothing yet")
        if ONE not in self.model.sources:
            raise NdkdError(
                f"diagnose looks at one teacher, and there are several ({', '.join(self.model.teacher_names)}): set "
                "model.init_args.teacher to one of them, and teachers to null"
            )
        if self.model.sources[ONE] is None:
            raise NdkdError(
                "diagnose looks at a teacher and what its student learns from it, and there is none: set "
                "model.init_args.teacher, and a loss term that reads it"
            )

    def after_fit(self) -> None:
        """Write the page, and the overlay where shares are asked for."""
        found = self.look.found
        if self.options.shares:
            chosen = {name: found.terms.weights[name] for name in self.options.shares}
            overlay = write_overlay(self.out, chosen, self.options.shares)
            said = ", ".join(f"{n} {w:g} (share {self.options.shares[n]:g})" for n, w in chosen.items())
            print(f"weights: {said}: --config {_short(overlay)}")
        elif (self.out / WEIGHTS).exists():
            (self.out / WEIGHTS).unlink()  # of an earlier look
        print(f"page: {_short(write_page(self.out, found))}")


class Look(L.Callback):
    """Looks at everything before the first step, and ends the training there.

    Args:
        options: of the command.
        name: of the run that would begin.
    """

    def __init__(self, options: Options, name: str):
        self.options, self.name = options, name

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Pass the sample through teacher and student; class means that nobody has given are those of the sample."""
        if pl_module.teacher is None:
            raise NdkdError("diagnose looks at what a student learns from its teacher, and no loss term reads it")
        bars = os.isatty(2)
        training = sample(trainer, pl_module, "training", self.options.samples, bars)
        assert training is not None
        self.training = training
        self.validation = sample(trainer, pl_module, "validation", self.options.samples, bars)
        self.names = [str(name) for name in pl_module.class_names or range(pl_module.num_classes)]
        self.class_means, self.absent = class_means(training, self.names, pl_module.num_classes)
        wanted = pl_module.class_means
        if wanted is not None and wanted.isnan().any():
            wanted.copy_(self.class_means)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if pl_module.projector is not None:
            check_last_batch(trainer)
        trainer.should_stop = True
        terms = measure_terms(trainer, pl_module, self.options.shares, os.isatty(2))
        seen = {"training": self.training, "validation": self.validation}
        teacher = {
            name: None if images is None or images.logits is None else teacher_figures(images.logits, images.target)
            for name, images in seen.items()
        }
        found = Diagnosis(
            name=self.name,
            objective=str(pl_module.objective),
            class_names=self.names,
            training=self.training,
            validation=self.validation,
            teacher=teacher,
            conflicts=label_conflicts(self.training, self.validation, self.names),
            embeddings=embeddings(self.training, self.class_means, self.names, self.absent),
            has_projector=pl_module.projector is not None,
            terms=terms,
            shares=self.options.shares,
            warnings=[],
        )
        found.warnings = warnings_of(found, _reported(pl_module))
        self.found = found
        print(*lines(found), sep="\n")


def warnings_of(d: Diagnosis, reported: float | None) -> list[str]:
    """All that is suspicious, a sentence each.

    Args:
        d: without them.
        reported: the accuracy that the teacher's own run has.
    """
    found: list[str] = []
    training, logits = d.teacher["training"], d.training.logits
    if training is not None and logits is not None:
        reordered = reordered_accuracy(logits, d.training.target)
        found += teacher_warnings(training, d.teacher["validation"], reported, reordered)
    if leaked := d.conflicts.leaked:
        n = len(leaked)
        found.append(
            f"{n} training image{'s are' if n > 1 else ' is'} among the validation images: {shortened(leaked)}"
        )
    if twins := d.conflicts.twins:
        first = " and ".join(twins[0][:2])
        n = len(twins)
        found.append(f"{n} image{'s have' if n > 1 else ' has'} different labels in several copies, such as {first}")
    if close := [f"{a} and {b} ({angle:.1f}°)" for a, b, angle in d.embeddings.coinciding]:
        found.append(f"class means nearly coincide, the teacher hardly tells these apart: {shortened(close)}")
    for name, later in d.terms.later.items():
        if later.norm != later.norm or later.norm == float("inf"):
            found.append(f"after {d.terms.steps} steps the gradient of {name} is not finite; lower the learning rate")
        elif later.norm == 0:
            found.append(f"{name} has no gradient on the student: it teaches it nothing")
        elif later.cosine_to_ce < -0.1:
            found.append(f"{name} pulls against the cross-entropy (cosine {later.cosine_to_ce:.2f})")
    return found


def _reported(module: Any) -> float | None:
    """The accuracy of the last epoch of the teacher's own run, where its checkpoint lies in one."""
    checkpoint = getattr(module.sources["teacher"], "checkpoint", None)
    run = Run.of_checkpoint(checkpoint) if checkpoint else None
    try:
        results = run.validation_results("val/acc1") if run else {}
    except NdkdError:
        return None
    return results["last"]["val/acc1"] if results else None


def _parsed(arguments: list[str]) -> tuple[Options, list[str]]:
    """The command's own options, and those of ``ndkd fit``."""
    parser = argparse.ArgumentParser("ndkd diagnose", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--samples", default="2000")
    parser.add_argument("--share", nargs="+", action="extend", default=[])
    parser.add_argument("--out", type=Path)
    try:
        given, others = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise NdkdError(f"{error}; see ndkd diagnose --help") from error
    if not given.samples.isdecimal() or int(given.samples) < LEAST:
        raise NdkdError(f"samples: wanted a number of images, at least {LEAST}, got {given.samples}")
    shares: dict[str, float] = {}
    for word in given.share:
        name, _, number = word.partition("=")
        try:
            share = float(number)
        except ValueError:
            raise NdkdError(f"share: wanted TERM=FRACTION such as nd=0.2, got {word}") from None
        if name in shares:
            raise NdkdError(f"share: {name} is given twice; keep one")
        check_share(f"share: {name}", share)
        shares[name] = share
    return Options(int(given.samples), shares, given.out), others


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
