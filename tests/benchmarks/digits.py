"""README's table: every method on digits, with and without the ND term, over ten paired seeds.

Two runs at a time, on one thread each; a run that is finished is not repeated.

    python tests/benchmarks/digits.py
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ndkd.runs import Run

SEEDS = range(10)
TEACHER = ["--config", "configs/digits/teacher.yaml"]
METHODS = {"KD": "kd++", "DKD": "dkd++", "DIST": "dist++", "ReviewKD": "reviewkd++"}
NO_ND = ["--model.init_args.losses.nd.weight", "0"]


def fit(folder: str, options: list[str]) -> Run:
    """Train into a folder, unless that has been done."""
    run = Run(folder)
    if run.status().get("state") != "finished":
        command = [sys.executable, "-m", "ndkd", "fit", *options, "--run_dir", folder]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    return run


def rows() -> dict[str, list[str]]:
    """Options of each row of the table."""
    config = "configs/digits/{}.yaml".format
    options = {"student": ["--config", config("student")]}
    for method, name in METHODS.items():
        options |= {method: ["--config", config(name), *NO_ND], f"{method}++": ["--config", config(name)]}
    return options


def show(values: np.ndarray, sign: str = "") -> str:
    return f"{values.mean():{sign}.2f} ± {values.std(ddof=1):.2f}"


def main() -> None:
    teacher = fit("runs/digits/teacher", TEACHER)
    jobs = {
        (row, seed): (f"runs/digits-table/{row}-{seed}", [*options, "--seed_everything", str(seed)])
        for seed in SEEDS
        for row, options in rows().items()
    }
    with ThreadPoolExecutor(2) as pool:
        runs = dict(zip(jobs, pool.map(lambda job: fit(*job), jobs.values()), strict=True))
    accuracy = {
        row: 100 * np.array([runs[row, seed].status()["results"]["last"]["test/acc1"] for seed in SEEDS])
        for row in rows()
    }
    print(f"teacher: {100 * teacher.status()['results']['last']['test/acc1']:.2f}\n")
    print("| | test accuracy (%) | minus student | minus the same with ND at 0 |\n|---|---|---|---|")
    for row, values in accuracy.items():
        to_student = show(values - accuracy["student"], "+") if row != "student" else ""
        to_control = show(values - accuracy[row.removesuffix("++")], "+") if row.endswith("++") else ""
        print(f"| {row} | {show(values)} | {to_student} | {to_control} |")


if __name__ == "__main__":
    main()
