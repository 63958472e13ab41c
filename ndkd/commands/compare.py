"""``ndkd compare``: every configuration with every seed, and one table of what came out."""

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ndkd.commands.compare_figures import pictures
from ndkd.commands.compare_jobs import Fit, run_fits
from ndkd.commands.compare_plan import described_teachers, plan, read_sweep, teacher_fit, teachers_of, what_differs
from ndkd.commands.compare_published import notes as published_notes
from ndkd.commands.compare_rounds import Round, check_comparisons, rounds, schedule, shown
from ndkd.commands.compare_tables import as_table, write_tables
from ndkd.commands.compare_verdicts import Rule
from ndkd.commands.markdown import inline
from ndkd.commands.table import read_results
from ndkd.commands.teacher_means import write_teacher_means
from ndkd.configuration.checks import check_option
from ndkd.errors import NdkdError, shortened
from ndkd.files import check_folder, write_atomically
from ndkd.lock import locked
from ndkd.runs import MEASURED
from ndkd.stopping import stop


def compare(
    configs: list[str],
    out: Path,
    teacher: str | None = None,
    seeds: Sequence[int] | None = None,
    control: str | None = None,
    sweep: Sequence[str] = (),
    jobs: int = 1,
    no_teacher_cache: bool = False,
    print_commands: bool = False,
    until: str | None = None,
    margin: float | None = None,
    max_seeds: int | None = None,
    error_rate: float | None = None,
    fit_options: Sequence[str] = (),
) -> int:
    """Train what is not trained yet, and write ``results.csv``, ``results.md`` and the pictures.

    A finished run is not repeated, an interrupted one is resumed. Every run is an ordinary ``ndkd fit`` in a process
    of its own; where there are several GPUs and ``jobs``, each has one of them. A run without a teacher is given the
    class means of the others' teacher, to measure its angles.

    Args:
        configs: configurations, the first is what the others are compared with; ``A.yaml,B.yaml`` is A with B over it.
        out: folder for the runs, ``NAME-seedN``, their logs and the results.
        teacher: configuration of the teacher, trained first into its own run folder unless it is there.
        seeds: each configuration is trained with each of them; by default 0, with ``until`` 0, 1 and 2.
        control: name of a loss term; each configuration that has it is also trained with its weight at 0.
        sweep: name of a loss term and weights; each configuration that has it is trained with each of them.
        jobs: number of runs at once.
        no_teacher_cache: do not record what the teacher says, for the other runs of the seed, in ``out/teacher_cache``.
        print_commands: print the commands of all runs that are left to do, and do nothing.
        until: ``decided``: further seeds follow, one after another, while a difference is not decided.
        margin: in points, what a difference must exceed to matter; by default 0.3.
        max_seeds: the number of seeds at which this ends at the latest; by default 30.
        error_rate: the probability that any of the verdicts is wrong; by default 0.05.
        fit_options: further options of every run but the teacher's.

    Returns:
        The exit status: 1 if a run failed.

    Raises:
        NdkdError: a mistake that can be seen before the first run begins, or a teacher that fails.
    """
    command = shlex.join(["ndkd", *sys.argv[1:]])
    chosen = schedule(seeds, until, margin, max_seeds, error_rate)
    _check(jobs, out, fit_options)
    first = teacher_fit(teacher) if teacher else None
    swept = read_sweep(sweep) if sweep else None
    fits = plan(configs, [*chosen.start, *chosen.later], out, control, swept, fit_options, first)
    check_comparisons(fits, chosen.rule)
    _check_results(out, fits[0])
    before = _teacher_left(first)

    def left_of(turn: Round, write: bool = True) -> list[Fit]:
        left = [fit for fit in turn.fits if not fit.is_finished]
        if not no_teacher_cache:
            share_teachers(turn.fits, out / "teacher_cache")
        give_class_means(left, fits, first, out, write)
        return left

    if print_commands:
        left = next((left for turn in rounds(fits, chosen) if (left := left_of(turn, write=False))), [])
        for fit in before + left:
            print(shlex.join(["ndkd", *fit.command]))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    stop.advice = lambda: "the same command resumes"
    with locked(out, "out", "choose another --out DIR"):
        run_fits(before, 1, out)
        if first and first.error:
            raise NdkdError(f"the teacher failed: {first.error}; its log: {out / first.run.path.name}.log")
        try:
            for turn in rounds(fits, chosen):
                if (left := left_of(turn)) and turn.why:
                    print(turn.why, flush=True)
                run_fits(left, jobs, out)
        finally:
            _write_results(shown(fits, chosen), out, command, chosen.rule)
    failed = [fit.run.path.name for fit in fits if fit.error]
    if failed:
        number = len(shown(fits, chosen))
        print(f"ndkd: {len(failed)} of {number} runs failed: {shortened(failed)}; see {out}/NAME.log", file=sys.stderr)
    return 1 if failed else 0


def _check(jobs: int, out: Path, fit_options: Sequence[str]) -> None:
    if jobs < 1:
        raise NdkdError(f"jobs: wanted at least 1, got {jobs}")
    check_folder(out, "--out DIR")
    for option in fit_options:
        check_option(option)


def _teacher_left(first: Fit | None) -> list[Fit]:
    """The teacher's run, unless it is there; a word if it was made otherwise."""
    # a checkpoint without a status was put there by hand
    there = first and first.run.is_used and first.run.status().get("state", "finished") == "finished"
    if first and there and first.run.config.is_file() and (found := what_differs(first)):
        print(f"ndkd: the teacher's run {first.run.path} has {found}: it is used as it is", file=sys.stderr)
    return [first] if first and not there else []


def _write_results(fits: list[Fit], out: Path, command: str, rule: Rule | None) -> None:
    for name, fit in {fit.row["config"]: fit for fit in fits}.items():
        _write_config(fit, out / "configs" / f"{name}.yaml")
    rows = [fit.result() | (rule._asdict() if rule else {}) for fit in fits]
    unmeasured = [row["folder"] for row in rows if row["state"] == "finished" and not row.keys() >= MEASURED.keys()]
    said = published_notes({fit.row["config"]: fit.config for fit in fits}, as_table(rows))
    if unmeasured:
        said += [f"Not in features.png, having no class means or none of their width: {shortened(unmeasured)}."]
    table = write_tables(rows, out, command, "\n\n".join(map(inline, said)))
    for name, figure in pictures(as_table(rows)):
        write_atomically(out / f"{name}.png", partial(figure.savefig, dpi=150, format="png"))
    print(table, *said, f"results: {out}/results.md, .csv, .png", sep="\n")


def _write_config(fit: Fit, file: Path) -> None:
    kept = {name: value for name, value in fit.config.items() if name not in ("run_dir", "seed_everything")}
    text = yaml.safe_dump(kept, sort_keys=False)
    write_atomically(file, lambda out: out.write(text.encode()))


def _check_results(out: Path, fit: Fit) -> None:
    """Raise ``NdkdError`` if the folder has a table of another protocol, which would be lost."""
    file = out / "results.csv"
    found = read_results(file)["protocol"].dropna() if file.is_file() else []
    if other := [protocol for protocol in found if protocol != fit.protocol]:
        raise NdkdError(
            f"{file} has results of {other[0]}, this command's are of {fit.protocol}: choose another --out DIR"
        )


def give_class_means(left: list[Fit], fits: list[Fit], first: Fit | None, out: Path, write: bool = True) -> None:
    """Let runs without a teacher measure their angles to the class means of the teacher that the others have.

    Args:
        left: the runs that are left to do.
        fits: all runs.
        first: the teacher that is trained first.
        out: where the means are kept, ``class_means/NAME.safetensors``.
        write: write files that are not there.
    """
    entries = {_identity(entry): entry for fit in fits for entry in described_teachers(fit.config)}
    if first and not entries:
        made = {**first.config["model"]["init_args"]["student"], "checkpoint": str(first.run.checkpoint("last"))}
        entries = {"": made}
    wanting = [fit for fit in left if not teachers_of(fit.config) and _can_be_measured(fit.config)]
    if len(entries) != 1 or not wanting:  # of two teachers none is the one
        return
    (teacher,) = entries.values()
    tried: set[str] = set()
    failed: set[str] = set()
    for fit in wanting:
        name = fit.row["config"]
        file = out / "class_means" / f"{name}.safetensors"
        if write and name not in tried:
            try:
                write_teacher_means(file, teacher, fit.config["data"])
            except NdkdError as error:
                print(f"no angles of {name}: {error}")
                failed.add(name)
        tried.add(name)
        if name not in failed and file.is_file():
            fit.options += ["--class_means.file", str(file)]


def share_teachers(fits: list[Fit], folder: Path) -> None:
    """Let the classifiers of one seed that have a teacher record what it says, or read what another has recorded."""
    taught = [fit for fit in fits if _is_classifier(fit.config) and teachers_of(fit.config)]
    of_seed = Counter(fit.row["seed"] for fit in taught)
    for fit in taught:
        if of_seed[fit.row["seed"]] > 1 and not fit.config["teacher_cache"]["dir"]:
            fit.options[2:2] = ["--teacher_cache", str(folder)]  # after the configuration


def _identity(teacher: dict[str, Any]) -> str:
    """What makes one teacher another."""
    return json.dumps(
        {name: teacher.get(name) for name in ("name", "checkpoint", "pretrained", "mean", "std", "kwargs")}
    )


def _can_be_measured(config: dict[str, Any]) -> bool:
    """A classifier, which nobody has given a file of means."""
    return _is_classifier(config) and not config["class_means"]["file"]


def _is_classifier(config: dict[str, Any]) -> bool:
    return config["model"]["class_path"].endswith(".DistillationModule")
