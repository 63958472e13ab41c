"""Kill runs at random moments and finish them: ``python benchmarks/torture.py --kills 100 --seed 0``.

Digits, an image folder with workers, ``compare --jobs 2`` and ``export`` are killed by SIGKILL, or by SIGTERM or SIGINT
to their whole process group, several times each, then run to the end. What they wrote must be, bit for bit, what an
unbroken run wrote; a kill must end every process, without a traceback, with its exit status and the status it tells.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ndkd.commands.export
import ndkd.commands.training  # noqa: F401 the processes are forked from this one, which has imported everything
from ndkd.cli import main as ndkd
from ndkd.runs import Run

CONFIGS = Path(__file__).parent.parent / "configs"
KILLS = {"SIGKILL": {-9}, "SIGTERM": {143, -15}, "SIGINT": {130, -2}}  # and the exit statuses that each may give
TURNS = [*2 * ["digits", "folder", "digits", "folder", "export"], "compare"]
PATIENCE = 20  # seconds until all processes of a killed group are gone
OPTIONS = ["--trainer.accelerator=cpu", "--trainer.max_epochs=4", "--trainer.limit_test_batches=2"]
SMALL = ["--data.init_args.train_size=40", "--data.init_args.val_size=20", "--data.init_args.batch_size=8"]
FOLDER = """
model:
  class_path: DistillationModule
  init_args:
    student: {{name: cifar/resnet8}}
    losses: {{ce: {{loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}}}}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.1, momentum: 0.9}}}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {}, batch_size: 4, image_size: 32, num_workers: 2, mixup: 0.2}}
"""


def start(arguments: list[str], log: Path) -> int:
    """``ndkd`` in a process group of its own; the number of the process."""
    if process := os.fork():
        return process
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["ndkd", *arguments]
    status = 1
    try:
        status = ndkd(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def alive(group: int) -> list[str]:
    """The processes of a group that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, _, owner = rest.split()[:3]
        if int(owner) == group and state != "Z":
            found.append(f"{entry.parent.name} {name}")
    return found


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["state_dict"] if file.exists() else {}


def kept(folder: Path) -> dict:
    """All that a run must have in common with an unbroken one."""
    run = Run(folder)
    found = {}
    for kind in ("last", "best"):
        found |= {f"{kind} {name}": tensor for name, tensor in weights(run.checkpoint(kind)).items()}
    rows = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in run.metrics()]
    status = run.status()
    found |= {"metrics": rows, "state": status.get("state"), "results": status.get("results")}
    found["files"] = sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
    return found


def differences(found: dict, wanted: dict) -> list[str]:
    """Names of what differs."""
    names = sorted(found.keys() ^ wanted.keys())
    for name in found.keys() & wanted.keys():
        pair = found[name], wanted[name]
        if not (torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1]):
            names.append(name)
    return names


class Case:
    """Something to kill.

    Args:
        name: of it.
        command: the arguments of ``ndkd``, whose results go to a folder.
        read: what is in that folder, to be compared.
        statuses: the files that must tell of a kill; those of runs that ``compare`` has not begun again cannot.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[Path], list[str]],
        read: Callable[[Path], dict],
        statuses: str = "status.json",
    ):
        self.name, self.command, self.read, self.statuses = name, command, read, statuses
        self.late = 0  # kills that came when all was done

    def unbroken(self, folder: Path) -> None:
        """Run once without a kill."""
        began, log = time.monotonic(), folder.with_suffix(".log")
        status = wait(start(self.command(folder), log))
        assert status == 0, log.read_text()
        self.seconds, self.wanted = time.monotonic() - began, self.read(folder)

    def kill(self, folder: Path, name: str, moment: float) -> list[str]:
        """Start and kill; what is wrong with how it ends."""
        log = folder.with_suffix(".log")
        log.write_text("")
        began, process = time.time(), start(self.command(folder), log)
        time.sleep(moment)
        (os.kill if name == "SIGKILL" else os.killpg)(process, getattr(signal, name))
        ends, status = time.monotonic() + PATIENCE, wait(process)
        while (left := alive(process)) and time.monotonic() < ends:
            time.sleep(0.05)
        self.late += status == 0
        said, wrong = log.read_text(), [f"still there: {', '.join(left)}"] if left else []
        if status not in KILLS[name] | {0}:
            wrong.append(f"exit status {status}")
        if "Traceback" in said:
            wrong.append(f"traceback: {said[-1500:]}")
        if status in (130, 143):
            # what a SIGKILL has left stays until the next process comes to the folder
            told = [file for file in folder.glob(self.statuses) if file.stat().st_mtime > began]
            states = {file.parent.name: Run(file.parent).status().get("state") for file in told}
            wrong += [f"{run} is {state}" for run, state in states.items() if state not in ("interrupted", "finished")]
        return wrong

    def finish(self, folder: Path) -> list[str]:
        """Run to the end; what differs from the unbroken run."""
        log = folder.with_suffix(".log")
        log.write_text("")
        status = wait(start(self.command(folder), log))
        if status:
            return [f"the resumed run ends with {status}: {log.read_text()[-1500:]}"]
        names = differences(self.read(folder), self.wanted)
        return [f"differs: {', '.join(names[:5])}"] if names else []


def cases(place: Path) -> list[Case]:
    """What is killed, with its data and its teacher in a folder."""
    teacher, numbers = place / "teacher", np.random.default_rng(0)
    digits = ["--config", str(CONFIGS / "digits/teacher.yaml"), *OPTIONS, *SMALL]
    assert wait(start(["fit", *digits, "--run_dir", str(teacher)], place / "teacher.log")) == 0
    checkpoint = str(Run(teacher).checkpoint("last"))
    for split, count in (("train", 24), ("val", 8)):
        for number in range(count):
            file = place / "images" / split / f"class{number % 2}" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers.integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    overlay = place / "small.yaml"
    overlay.write_text(
        "trainer: {max_epochs: 3, accelerator: cpu, limit_test_batches: 2}\n"
        "data: {init_args: {train_size: 40, val_size: 20, batch_size: 8}}\n"
        f"model: {{init_args: {{teacher: {{checkpoint: {checkpoint}}}}}}}\n"
    )
    plain = place / "plain.yaml"
    plain.write_text("\n".join(line for line in overlay.read_text().splitlines() if "teacher" not in line) + "\n")

    def fit(*options: str) -> Callable[[Path], list[str]]:
        def command(folder: Path) -> list[str]:
            resume = ["--ckpt_path", "last"] if Run(folder).is_used else []
            return ["fit", *options, *OPTIONS, "--run_dir", str(folder), *resume]

        return command

    def compared(folder: Path) -> dict:
        runs = sorted(file.parent for file in folder.glob("*/config.yaml"))
        return {f"{run.name} {name}": value for run in runs for name, value in kept(run).items()}

    def compare(folder: Path) -> list[str]:
        configs = [f"{CONFIGS}/digits/student.yaml,{plain}", f"{CONFIGS}/digits/kd++.yaml,{overlay}"]
        return ["compare", *configs, "--jobs", "2", "--out", str(folder)]

    def exported(folder: Path) -> dict:
        files = {file.name: file.stat().st_size for file in folder.glob("*") if file.name != "README.md"}
        files["left behind"] = sorted(file.name for file in folder.parent.glob(".*.export"))
        return {**files, **dict(sorted(torch.load(folder / "model.pt", weights_only=True).items()))}

    def export(folder: Path) -> list[str]:
        if (folder / "model.pt").exists() and (folder / "README.md").exists():  # the kill came too late
            shutil.rmtree(folder)
        return ["export", checkpoint, "--format", "torch", "--out", str(folder / "model.pt")]

    distilled = ["--config", str(CONFIGS / "digits/kd++.yaml"), f"--model.init_args.teacher.checkpoint={checkpoint}"]
    folder = place / "folder.yaml"
    folder.write_text(FOLDER.format(place / "images"))
    return [
        Case("digits", fit(*distilled, *SMALL), kept),
        Case("folder", fit("--config", str(folder)), kept),
        Case("compare", compare, compared, "nothing"),
        Case("export", export, exported, "nothing"),
    ]


def main() -> int:
    """Kill, finish and compare; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-run", type=int, default=3, help="kills until a run may end")
    parser.add_argument("--cases", nargs="+", default=TURNS, help="what is killed, in turn")
    options = parser.parse_args()
    chance, counts, failures = random.Random(options.seed), collections.Counter(), 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        known = {case.name: case for case in cases(Path(place)) if case.name in options.cases}
        for case in known.values():
            case.unbroken(Path(place, f"{case.name}-unbroken"))
            print(f"{case.name}: unbroken in {case.seconds:.1f} s", flush=True)
        kills, turn = 0, 0
        while kills < options.kills:
            case = known[options.cases[turn % len(options.cases)]]
            folder, wrong = Path(place, f"{case.name}-{turn}"), []
            for _ in range(min(options.per_run, options.kills - kills)):
                name, moment = chance.choice(list(KILLS)), chance.uniform(0, case.seconds)
                wrong += [f"{name} after {moment:.2f} s: {fault}" for fault in case.kill(folder, name, moment)]
                counts[case.name, name] += 1
                kills += 1
            wrong += case.finish(folder)
            failures += bool(wrong)
            turn += 1
            print(f"{kills:4} kills, {turn} runs, {failures} at fault; {case.name}: {wrong or 'ok'}", flush=True)
    for (case, name), count in sorted(counts.items()):
        print(f"{case:<10}{name:<10}{count:4} kills")
    print(f"too late, the run was over: {sum(case.late for case in known.values())}")
    print(f"{kills} kills, {turn} runs finished afterwards, {failures} of them at fault")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
