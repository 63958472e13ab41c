"""``ndkd compare`` of seven methods, one seed: the whole command with the teacher recorded once, against without.

Both sides are timed from start to end, start-up of every run included, in turns. The more ``--steps``, the nearer the
ratio is to that of long trainings, which that of the epochs alone foretells. What follows ``--`` goes to every run.

    python benchmarks/compare.py --pairs r56_r20 -- --trainer.precision bf16-mixed
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import pandas as pd
from quiet import ndkd_process
from synthetic_cifar import BATCH_SIZE, PAIRS, TEMPERATURE, written

WANTED = {"r56_r20": 1.4, "r32x4_r8x4": 2.0, "r50_mv2": 4.0}
DKD = {"loss": {"class_path": "DKDLoss", "init_args": {"temperature": TEMPERATURE}}}


def write_methods(config: Path, epochs: int) -> list[str]:
    """Beside KD++'s configuration, those of student, KD, KD++, DKD, DKD++, DIST and DIST++."""
    whole, files = json.loads(config.read_text()), []
    whole["trainer"]["max_epochs"] = epochs
    ce, kd, nd = (whole["model"]["init_args"]["losses"][name] for name in ("ce", "kd", "nd"))
    terms = {"kd": kd, "dkd": DKD, "dist": {"loss": "DISTLoss"}}
    methods = {"student": {}, **{name: {name: term} for name, term in terms.items()}}
    methods |= {f"{name}++": {name: term, "nd": nd} for name, term in terms.items()}
    for name, losses in methods.items():
        whole["model"]["init_args"]["losses"] = {"ce": ce, **losses}
        file = config.with_name(f"{name}.yaml")
        file.write_text(json.dumps(whole))
        files.append(str(file))
    return files


def seconds_of(root: Path, configs: list[str], words: list[str], options: list[str]) -> tuple[float, float]:
    """Of the whole command, and of the epochs of its runs."""
    out = root / "out"
    started = time.perf_counter()
    ndkd_process("compare", "--out", out, *words, *configs, "--", *options, silent=True)
    taken = time.perf_counter() - started
    epochs = pd.read_csv(out / "results.csv")["seconds"].sum()
    shutil.rmtree(out)
    return taken, epochs


def main() -> None:
    parser = argparse.ArgumentParser(usage="%(prog)s [--pairs PAIR …] [--steps N] [--repeats N] [-- OPTION_OF_A_RUN …]")
    parser.add_argument("--pairs", nargs="+", choices=WANTED, default=list(WANTED))
    parser.add_argument("--steps", type=int, default=100, help="of an epoch; there are two")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    for pair in arguments.pairs:
        with written(pair, BATCH_SIZE * arguments.steps) as config:
            configs = write_methods(config, epochs=2)
            times = [
                [seconds_of(config.parent, configs, words, arguments.options) for words in (["--no-teacher-cache"], [])]
                for _ in range(arguments.repeats)
            ]
        ratios = [without[0] / shared[0] for without, shared in times]
        of_epochs = statistics.median(without[1] / shared[1] for without, shared in times)
        shown = ", ".join(f"{statistics.median(t[0] for t in side):.0f} s" for side in zip(*times, strict=True))
        print(
            f"{pair} ({' → '.join(PAIRS[pair])}), 7 methods of 2 epochs of {arguments.steps} steps, without and with a "
            f"shared teacher: {shown}, ratio {statistics.median(ratios):.2f}, from {min(ratios):.2f} to "
            f"{max(ratios):.2f}; the epochs alone {of_epochs:.2f} (wanted at least {WANTED[pair]} in long trainings)",
            flush=True,
        )


if __name__ == "__main__":
    main()
