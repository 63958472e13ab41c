"""The options of ``ndkd compare``; nothing heavy is imported for its help."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_compare(add: Callable[..., Any]) -> None:
    add(
        "configs",
        nargs="+",
        metavar="CONFIG",
        help="a file, or a name that ndkd configs lists; A.yaml,B.yaml is A with the changes in B",
    )
    add("--teacher", metavar="CONFIG", help="of the teacher; trained first, unless that has been done")
    add(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="train every configuration with each of these seeds (default 0; with --until, 0 1 2)",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the runs, and for results.csv, .md and .png")
    add(
        "--control",
        metavar="TERM",
        help="also train every configuration with this loss term at weight 0, for example nd",
    )
    add(
        "--sweep",
        nargs="+",
        default=[],
        metavar=("TERM", "WEIGHT"),
        help="train every configuration that has this loss term with each of these weights",
    )
    add(
        "--until",
        choices=["decided"],
        help="add seeds, one after another, until each difference is decided: better, worse, or none above the margin",
    )
    add("--margin", type=float, metavar="POINTS", help="with --until: what a difference must exceed (default 0.3)")
    add("--max-seeds", type=int, metavar="N", help="with --until: stop at this number of seeds (default 30)")
    add(
        "--error-rate",
        type=float,
        metavar="P",
        help="with --until: probability that any of the verdicts is wrong (default 0.05)",
    )
    add("--jobs", type=int, default=1, metavar="N", help="number of runs at the same time (default 1)")
    add(
        "--no-teacher-cache",
        action="store_true",
        help="do not share the teacher's recorded outputs among the runs; see docs/runs.md",
    )
    add("--print-commands", action="store_true", help="print the commands of the runs without running them")
