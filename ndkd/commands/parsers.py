"""The options of the commands that are plain functions; it loads nothing heavy, for their help."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndkd.commands.compare_options import add_compare

TRUST = "allow the run to use classes of your own package; or NDKD_TRUST=PACKAGE, see docs/security.md"


def add_table(add: Callable[..., Any]) -> None:
    add(
        "files", nargs="+", type=Path, metavar="CSV", help="results.csv of ndkd compare; several files become one table"
    )


def add_report(add: Callable[..., Any]) -> None:
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders; the first is the baseline")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for index.html and its pictures (default: report in the run folder, or beside the run folders)",
    )


def add_export(add: Callable[..., Any]) -> None:
    add("checkpoint", type=Path, help="checkpoint of a run, for example runs/digits/kd++/checkpoints/best.ckpt")
    add("--format", choices=["safetensors", "torch", "onnx", "torch_export"], default="safetensors")
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="file to write; give it a folder of its own, for a model card and preprocess.json",
    )
    add(
        "--normalise",
        action="store_true",
        help="build normalisation into the network, which then takes images in [0, 1] (onnx and torch_export)",
    )
    add("--quantize", choices=["int8"], help="quantize weights and activations to eight bits (onnx)")
    add("--calibration", type=int, metavar="N", help="number of training images to calibrate int8 on (default 300)")
    add("--max_drop", type=float, metavar="POINTS", help="fail if int8 costs more accuracy than this (default 1)")
    add("--push", metavar="REPO", help="upload the folder of --out to this repository on the Hugging Face Hub")
    add("--private", action="store_true", help="make that repository a private one")
    add("--license", metavar="NAME", help="licence of the weights, as the Hub spells it (default unknown)")
    add("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST)
    add(
        "--config",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="your own configuration; allow what it names",
    )


def add_cache(add: Callable[..., Any]) -> None:
    add("folder", type=Path, metavar="DIR", help="given to --teacher_cache; ndkd compare has it in OUT/teacher_cache")
    add("--older-than", type=float, metavar="DAYS", help="only recordings that nothing was added to for this long")
    add("--teacher", metavar="TEXT", help="only of teachers with this text in their name or checkpoint")
    add("--delete", action="store_true", help="delete the recordings instead of listing them")


def add_configs(add: Callable[..., Any]) -> None:
    add("name", nargs="?", metavar="NAME", help="a configuration to print in full, or a folder to list")


def add_predict(add: Callable[..., Any]) -> None:
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="such as RUN/checkpoints/best.ckpt")
    add("--images", type=Path, nargs="+", required=True, metavar="PATH", help="photos, or folders to search for photos")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="CSV file to write (default: predictions_of_NAME.csv in the run folder)",
    )
    add("--on_error", choices=["stop", "skip"], default="stop", help="what to do at a photo that cannot be read")
    add("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST)


PARSERS = {
    "compare": add_compare,
    "table": add_table,
    "report": add_report,
    "export": add_export,
    "predict": add_predict,
    "cache": add_cache,
    "configs": add_configs,
}


EPILOGS = {
    "compare": "Options after -- are passed to every run: ndkd compare … -- --trainer.max_epochs 5",
    "configs": "To start your own from one of them: ndkd configs digits/kd++.yaml > mine.yaml",
}
