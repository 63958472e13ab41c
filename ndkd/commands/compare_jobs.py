"""Many ``ndkd fit`` at once, each in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ndkd.errors import Damaged
from ndkd.runs import MEASURED, Run
from ndkd.stopping import parent_of

PATIENCE = 30  # seconds that a run may take to stop
NDKD = [sys.executable, "-m", "ndkd"]
EVALUATED = ("root", "val", "val_size", "image_size")  # options of the data that say what is evaluated


@dataclass
class Fit:
    """One ``ndkd fit``.

    Args:
        run: its folder.
        options: of the command.
        config: what the command makes of them.
        row: what results.csv says of it besides its results.
        error: why it failed.
    """

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
    def protocol(self) -> str:
        """What results must have in common to stand in one table: the images, and how long was trained."""
        data, trainer = self.config["data"], self.config["trainer"]
        parts = [data["class_path"].rpartition(".")[2]]
        for name, value in data.get("init_args", {}).items():
            if name in EVALUATED and value:
                parts.append(f"{name} {Path(value).name if isinstance(value, str) else value}")
        in_epochs = (trainer["max_epochs"] or -1) > 0
        parts.append(f"{trainer['max_epochs']} epochs" if in_epochs else f"{trainer['max_steps']} steps")
        for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
            if trainer.get(name) not in (None, 1.0):
                parts.append(f"{name} {trainer[name]:g}")
        return ", ".join(parts)

    @property
    def command(self) -> list[str]:
        """The command that does what is left to do."""
        return ["fit", *self.options, *(["--ckpt_path", "last"] if self.run.is_used else [])]

    @property
    def progress(self) -> float:
        """Share of the epochs or steps that are done."""
        try:
            rows, trainer = self.run.metrics(), self.config["trainer"]
        except Damaged:  # what it starts with sets it aside
            return 0.0
        done = {"max_epochs": int(rows[-1]["epoch"]) + 1, "max_steps": int(rows[-1]["step"])} if rows else {}
        return max((done[limit] / trainer[limit] for limit in done if (trainer[limit] or -1) > 0), default=0.0)

    def result(self) -> dict[str, Any]:
        """The run's row of results.csv, metrics × 100."""
        try:
            return self._result()
        except Damaged as error:
            return {**self.row, "state": "damaged", "error": str(error), "folder": self.run.path.name}

    def _result(self) -> dict[str, Any]:
        status = self.run.status()
        state = "finished" if self.is_finished else "failed" if self.error else status.get("state", "not run")
        found = {**self.row, "state": state, "error": self.error, "folder": self.run.path.name}
        found["protocol"] = self.protocol
        if self.is_finished:
            tested = bool(status["results"])
            metric = f"{'test' if tested else 'val'}/{status.get('headline', 'acc1')}"
            epochs = status["results"] if tested else self.run.validation_results(metric)
            found |= {"metric": metric, "seconds": status.get("seconds"), "parameters": status.get("parameters")}
            for name, values in epochs.items():
                found |= {name: 100 * values[metric], f"{name}_epoch": values["epoch"]}
            if taught := status.get("teacher"):
                found["teacher"] = 100 * taught[f"val/{status.get('headline', 'acc1')}"]
            found |= self._origin(status)
            at_the_end = (self.run.metrics() or [{}])[-1]
            found |= {name: float(at_the_end[column]) for name, column in MEASURED.items() if at_the_end.get(column)}
        return found

    def _origin(self, status: dict[str, Any]) -> dict[str, Any]:
        """When, where and by what the run was made."""
        found = {"date": status.get("date"), "commit": status.get("git_commit"), "machine": status.get("machine")}
        found["torch"] = status.get("versions", {}).get("torch")
        return {**found, "precision": self.config["trainer"].get("precision") or "32-true"}


Running = dict["subprocess.Popen[bytes]", tuple[Fit, dict[str, str]]]  # the fit of a process, and its place


def run_fits(fits: list[Fit], jobs: int, logs: Path) -> None:
    """Run them, so many at a time; a failure is kept in the fit's ``error``.

    One bar shows all of them, or, where standard error is no terminal, a line says when each begins.
    """
    places, waiting = _environments(jobs), list(fits)
    running: Running = {}
    layout = "{l_bar}{bar}| {n:.1f} of {total} runs [{elapsed}<{remaining}{postfix}]"
    hidden = None if fits else True  # None: where there is no terminal
    with tqdm(total=len(fits), bar_format=layout, mininterval=1, disable=hidden) as bar, _terminate_on_exit(running):
        while waiting or running:
            while waiting and places:
                fit, place = waiting.pop(0), places.pop(0)
                running[_started(fit, place, _log(logs, fit))] = fit, place
                if bar.disable:
                    number = len(fits) - len(waiting)
                    print(f"{fit.run.path.name}: run {number} of {len(fits)} begins", flush=True)
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                fit, place = running.pop(process)
                places.append(place)
                fit.error = _last_message(_log(logs, fit)) if process.returncode else None
                bar.write(f"{fit.run.path.name}: {fit.error or _outcome(fit)}", file=sys.stdout)
                sys.stdout.flush()
            _show_progress(bar, [fit for fit, _ in running.values()], len(fits) - len(waiting) - len(running))


def _log(logs: Path, fit: Fit) -> Path:
    return logs / f"{fit.run.path.name}.log"


def _started(fit: Fit, place: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    """The process of a run; what it prints goes to its log."""
    environment = os.environ | place | parent_of(signal.SIGTERM)
    with log.open("w") as file:
        return subprocess.Popen([*NDKD, *fit.command], env=environment, stdout=file, stderr=file)


def _show_progress(bar: Any, running: list[Fit], done: int) -> None:
    """Move the bar to the runs that are done and the shares of those that are going on."""
    shares = {fit.run.path.name: fit.progress for fit in running}
    bar.set_postfix_str(", ".join(f"{name} {share:.0%}" for name, share in shares.items()), refresh=False)
    bar.update(done + sum(shares.values()) - bar.n)


def _environments(jobs: int) -> list[dict[str, str]]:
    """What the environment of each run at a time adds: its share of the GPUs and of the cores."""
    if jobs == 1:
        return [{}]
    gpus = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))}
    return [threads | ({"CUDA_VISIBLE_DEVICES": names[job % gpus]} if gpus else {}) for job in range(jobs)]


@contextmanager
def _terminate_on_exit(running: Running) -> Iterator[None]:
    """End what is still running when we are stopped; it can go on from its last epoch."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _outcome(fit: Fit) -> str:
    result = fit.result()
    return (
        f"{result['metric']} {result['last']:.2f}, {result['seconds']:.0f} s" if "last" in result else result["state"]
    )


def _last_message(log: Path) -> str:
    """What a run that failed has said at its end."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = [line.removeprefix("ndkd: ") for line in lines if line.startswith("ndkd: ")]
    return said[-1] if said else lines[-1] if lines else "it ended without a word"
