"""``ndkd compare``: every configuration with every seed, and one table of what came out."""

import io
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from ndkd.cli import check_config
from ndkd.errors import NdkdError, one_of, some
from ndkd.jobs import Fit, run_fits
from ndkd.lock import locked
from ndkd.runs import Run, check_folder, differences
from ndkd.stopping import stop
from ndkd.tables import write_tables
from ndkd.training_cli import default_run_dir, run_command

PLACES = ("run_dir", "trainer.default_root_dir", "trainer.logger")  # where a run is kept, not what it is


def compare(
    configs: list[str],
    out: Path,
    teacher: str | None = None,
    seeds: Sequence[int] = (0,),
    control: str | None = None,
    jobs: int = 1,
    print_commands: bool = False,
    fit_options: Sequence[str] = (),
) -> int:
    """Train what is not trained yet, and write ``results.csv``, ``results.md`` and ``results.png``.

    A finished run is not repeated, one that was cut short goes on. Every run is an ordinary ``ndkd fit`` in a process
    of its own; where there are several GPUs and ``jobs``, each has one of them.

    Args:
        configs: configurations, the first is what the others are compared with; ``A.yaml,B.yaml`` is A with B over it.
        out: folder for the runs, ``NAME-seedN``, their logs and the results.
        teacher: configuration of the teacher, trained first into its own run folder unless it is there.
        seeds: each configuration is trained with each of them.
        control: name of a loss term; each configuration that has it is also trained with its weight at 0.
        jobs: number of runs at once.
        print_commands: print the commands of all runs that are left to do, and do nothing.
        fit_options: further options of every run but the teacher's.

    Returns:
        The exit status: 1 if a run failed.

    Raises:
        NdkdError: a mistake that can be seen before the first run begins, or a teacher that fails.
    """
    command = shlex.join(["ndkd", *sys.argv[1:]])
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise NdkdError(f"seeds: wanted different numbers from 0 on, got {' '.join(map(str, seeds))}")
    if jobs < 1:
        raise NdkdError(f"jobs: wanted at least 1, got {jobs}")
    check_folder(out, "--out DIR")
    first = _teacher(teacher) if teacher else None
    fits = _plan(configs, seeds, out, control, fit_options, first)
    # a checkpoint without a status was put there by hand
    there = first and first.run.is_used and first.run.status().get("state", "finished") == "finished"
    before, left = [first] if first and not there else [], [fit for fit in fits if not fit.is_finished]
    if print_commands:
        for fit in before + left:
            print(shlex.join(["ndkd", *fit.command]))
        return 0
    stop.advice = lambda: "the same command goes on"
    with locked(out, "out", "choose another --out DIR"):
        run_fits(before, 1, out)
        if first and first.error:
            raise NdkdError(f"the teacher failed: {first.error}; its log: {out / first.run.path.name}.log")
        try:
            run_fits(left, jobs, out)
        finally:
            tables = write_tables([fit.result() for fit in fits], out, command)
            print(tables, f"\nresults: {out}/results.md, .csv, .png")
    failed = [fit.run.path.name for fit in fits if fit.error]
    if failed:
        print(f"ndkd: {len(failed)} of {len(fits)} runs failed: {some(failed)}; see {out}/NAME.log", file=sys.stderr)
    return 1 if failed else 0


def _plan(
    configs: list[str], seeds: Sequence[int], out: Path, control: str | None, extra: Sequence[str], teacher: Fit | None
) -> list[Fit]:
    """All runs, and what is wrong with them that can be told before the first begins."""
    names = {config: default_run_dir(["fit", *_files(config)], seed=0).name for config in configs}
    for name in names.values():
        if len(twice := [config for config in configs if names[config] == name]) > 1:
            raise NdkdError(f"{some(twice)} have one name, {name}: give each file a name of its own")
    rows, terms = [], []
    for config, name in names.items():
        options = [*_files(config), *extra]
        resolved = _resolved(name, [*options, "--run_dir", str(out)])
        _check_teacher(name, resolved, teacher)
        weights = {term: entry["weight"] for term, entry in (resolved["model"]["init_args"]["losses"] or {}).items()}
        terms += weights
        without = f"{name}-{control}0" if weights.get(control) else None
        if without:
            zero = [*options, f"--model.init_args.losses.{control}.weight", "0"]
            rows.append((without, zero, _resolved(without, [*zero, "--run_dir", str(out)]), None))
        rows.append((name, options, resolved, without))
    if control and control not in terms:
        raise NdkdError(f"control: no configuration has a loss term {control}; {one_of(control, sorted(set(terms)))}")
    fits = []
    for seed in seeds:  # outside, so that a table broken off still compares
        for name, options, resolved, without in rows:
            run = Run(out / f"{name}-seed{seed}")
            options = [*options, "--seed_everything", str(seed), "--run_dir", str(run.path)]
            row = {"config": name, "seed": seed, "control": without}
            fits.append(Fit(run, options, {**resolved, "seed_everything": seed}, row))
            _check_unchanged(fits[-1])
    return fits


def _teacher(config: str) -> Fit:
    options = _files(config)
    return Fit(Run(default_run_dir(["fit", *options], seed=0)), options, _resolved("teacher", options))


def _files(config: str) -> list[str]:
    """A configuration's options: of each of its files."""
    for file in config.split(","):
        check_config(Path(file))
    return [option for file in config.split(",") for option in ("--config", file)]


def _resolved(name: str, options: list[str]) -> dict[str, Any]:
    """The configuration that ``ndkd fit`` makes of these options."""
    try:
        with redirect_stdout(io.StringIO()) as text:
            run_command(["fit", *options, "--print_config"])
    except NdkdError as error:
        raise NdkdError(f"configuration {name}: {error}") from error
    return yaml.safe_load(text.getvalue())


def _check_teacher(name: str, config: dict[str, Any], teacher: Fit | None) -> None:
    wanted = (config["model"]["init_args"].get("teacher") or {}).get("checkpoint")
    made = [teacher.run.checkpoint(kind) for kind in ("last", "best")] if teacher else []
    if wanted and not Path(wanted).is_file() and Path(wanted).resolve() not in [path.resolve() for path in made]:
        trains = f"--teacher trains {made[0]}" if made else "give the teacher's configuration as --teacher CONFIG"
        raise NdkdError(f"configuration {name}: its teacher {wanted} does not exist; {trains}")


def _check_unchanged(fit: Fit) -> None:
    """Raise ``NdkdError`` if the folder holds a run of another configuration."""
    kept = yaml.safe_load(fit.run.config.read_text()) if fit.run.is_used else {}
    for name, (now, before) in differences(fit.config, kept).items():
        if not name.startswith(PLACES):
            raise NdkdError(f"{fit.run.path} has {name} {before}, not {now}: remove it or choose another --out DIR")
