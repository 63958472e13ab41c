"""``ndkd compare``: every configuration with every seed, and one table of what came out."""

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from ndkd.cli import check_config
from ndkd.errors import NdkdError, one_of, some
from ndkd.runs import Run, check_folder, differences
from ndkd.tables import write_tables
from ndkd.training_cli import default_run_dir, run_command

NDKD = [sys.executable, "-m", "ndkd"]
PLACES = ("run_dir", "trainer.default_root_dir", "trainer.logger")  # where a run is kept, not what it is


@dataclass
class Fit:
    """One ``ndkd fit``: its folder, its options, and how it ended."""

    run: Run
    options: list[str]
    config: dict[str, Any]
    row: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether it was trained and tested to the end."""
        status = self.run.status()
        return status.get("state") == "finished" and "results" in status

    @property
    def command(self) -> list[str]:
        """The command that does what is left to do."""
        resume = ["--ckpt_path", "last"] if self.run.is_used else []
        return ["fit", *self.options, *resume]

    @property
    def progress(self) -> float:
        """Share of the epochs or steps that are done."""
        rows, trainer = self.run.metrics(), self.config["trainer"]
        done = {"max_epochs": int(rows[-1]["epoch"]) + 1, "max_steps": int(rows[-1]["step"])} if rows else {}
        return max((done[limit] / trainer[limit] for limit in done if (trainer[limit] or -1) > 0), default=0.0)

    def result(self) -> dict[str, Any]:
        """The run's row of results.csv, metrics × 100."""
        status = self.run.status()
        state = "finished" if self.is_finished else "failed" if self.error else status.get("state", "not run")
        found = {**self.row, "state": state, "error": self.error, "folder": self.run.path.name}
        if self.is_finished:
            tested = bool(status["results"])
            metric = f"{'test' if tested else 'val'}/{status['headline']}"
            epochs = status["results"] if tested else self.run.validation_results(metric)
            found |= {"metric": metric, "seconds": status["seconds"], "parameters": status["parameters"]}
            for name, values in epochs.items():
                found |= {name: 100 * values[metric], f"{name}_epoch": values["epoch"]}
        return found


def compare(
    configs: list[str],
    out: Path,
    teacher: str | None = None,
    seeds: list[int] | None = None,
    control: str | None = None,
    jobs: int = 1,
    print_commands: bool = False,
    fit_options: list[str] | None = None,
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
    seeds = [0] if seeds is None else seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise NdkdError(f"seeds: wanted different numbers from 0 on, got {' '.join(map(str, seeds))}")
    if jobs < 1:
        raise NdkdError(f"jobs: wanted at least 1, got {jobs}")
    check_folder(out, "--out DIR")
    first = _teacher(teacher) if teacher else None
    fits = _plan(configs, seeds, out, control, fit_options or [], first)
    left = [fit for fit in fits if not fit.is_finished]
    if print_commands:
        for fit in ([first] if first and not first.is_finished else []) + left:
            print(shlex.join(["ndkd", *fit.command]))
        return 0
    out.mkdir(parents=True, exist_ok=True)
    if first and not first.is_finished:
        _run([first], 1, out)
        if first.error:
            raise NdkdError(f"the teacher failed: {first.error}; its log: {out / first.run.path.name}.log")
    try:
        _run(left, jobs, out)
    finally:
        print(write_tables([fit.result() for fit in fits], out, command), f"\nresults: {out}/results.md, .csv, .png")
    failed = [fit.run.path.name for fit in fits if fit.error]
    if failed:
        print(f"ndkd: {len(failed)} of {len(fits)} runs failed: {some(failed)}; see {out}/NAME.log", file=sys.stderr)
    return 1 if failed else 0


def _plan(
    configs: list[str], seeds: list[int], out: Path, control: str | None, fit_options: list[str], teacher: Fit | None
) -> list[Fit]:
    """All runs, and what is wrong with them that can be told before the first begins."""
    names = [_name(config) for config in configs]
    if twice := [config for config, name in zip(configs, names, strict=True) if names.count(name) > 1]:
        raise NdkdError(f"{some(twice)} have one name, {_name(twice[0])}: give each file a name of its own")
    rows, terms = [], []
    for name, config in zip(names, configs, strict=True):
        options = [*_files(config), *fit_options]
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


def _name(config: str) -> str:
    return default_run_dir(["fit", *_files(config)], seed=0).name


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
    if not fit.run.is_used:
        return
    changed = differences(fit.config, yaml.safe_load(fit.run.config.read_text()))
    for name, (now, before) in changed.items():
        if not name.startswith(PLACES):
            raise NdkdError(
                f"{fit.run.path} was made with {name} {before}, now it is {now}: remove it or choose another --out"
            )


def _run(fits: list[Fit], jobs: int, logs: Path) -> None:
    """Run them, so many at a time, with one bar for all; a failure is kept in the fit's ``error``."""
    places = _places(jobs)
    waiting, running = list(fits), {}
    layout = "{l_bar}{bar}| {n:.1f} of {total} runs [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=len(fits), bar_format=layout, mininterval=1, disable=not fits) as bar, _ended(running):
        while waiting or running:
            while waiting and places:
                fit, place = waiting.pop(0), places.pop(0)
                with (logs / f"{fit.run.path.name}.log").open("w") as log:
                    process = subprocess.Popen([*NDKD, *fit.command], env=os.environ | place, stdout=log, stderr=log)
                running[process] = fit, place
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                fit, place = running.pop(process)
                places.append(place)
                fit.error = _last_words(logs / f"{fit.run.path.name}.log") if process.returncode else None
                bar.write(f"{fit.run.path.name}: {fit.error or _outcome(fit)}", file=sys.stdout)
            shares = {fit.run.path.name: fit.progress for fit, _ in running.values()}
            bar.set_postfix_str(", ".join(f"{name} {share:.0%}" for name, share in shares.items()), refresh=False)
            bar.update(len(fits) - len(waiting) - len(running) + sum(shares.values()) - bar.n)


def _places(jobs: int) -> list[dict[str, str]]:
    """What the environment of each run at a time adds: its share of the GPUs and of the cores."""
    gpus = torch.cuda.device_count()
    if jobs == 1:
        return [{}]
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    return [
        {"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": names[job % gpus]} if gpus else {})
        for job in range(jobs)
    ]


@contextmanager
def _ended(running: dict[subprocess.Popen, Any]) -> Iterator[None]:
    """End what is still running when we are stopped; it can go on from its last epoch."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _outcome(fit: Fit) -> str:
    result = fit.result()
    return f"{result['metric']} {result['last']:.2f}, {result['seconds']:.0f} s" if "last" in result else "finished"


def _last_words(log: Path) -> str:
    """What a run that failed has said at its end."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("ndkd: ") for line in lines if line.startswith("ndkd: ")]
    return said[-1] if said else lines[-1] if lines else "it ended without a word"
