"""``ndkd predict --images``: the classes of new photos, as CSV."""

import csv
import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from ndkd.classifier import of_checkpoint
from ndkd.data.folders import check_link
from ndkd.data.image_files import Skipped, images_below, readable
from ndkd.errors import NdkdError
from ndkd.files import check_folder, write_rows

COLUMNS = [
    "file",
    "prediction",
    "confidence",
    *(f"{name}_{k}" for k in range(2, 6) for name in ("class", "confidence")),
]


def predict(
    ckpt_path: Path, images: Sequence[Path], out: Path | None = None, on_error: str = "stop", trust: Sequence[str] = ()
) -> None:
    """Write file, prediction, confidence and the next four classes of every photo.

    Args:
        ckpt_path: of a run, in its run folder.
        images: photos, and folders that are searched through; what is hidden does not count.
        out: the CSV file.
        on_error: ``stop`` at a photo that cannot be read, or ``skip`` it.
        trust: packages of one's own that the run may name.

    Raises:
        NdkdError: no photo, one that cannot be read, a checkpoint that is not a classifier's, or a name for the table
            that is not a CSV file's.
    """
    if out is not None and (out.suffix.lower() != ".csv" or out.is_dir()):  # a photo would be lost
        raise NdkdError(f"--out: wanted the name of a CSV file, got {str(out)!r}; give it the ending .csv")
    skipped = Skipped()
    photos = [photo for place in images for photo in photos_in(place, skipped, on_error == "skip")]
    classifier, run = of_checkpoint(ckpt_path, trust)
    name = images[0].absolute().stem if len(images) == 1 else ""
    file = out or run.path / f"predictions_of_{name or 'images'}.csv"
    check_folder(file.parent, "--out FILE")
    if out is None:
        check_not_of_others(file, images)
    if on_error == "skip":
        photos = list(compress(photos, readable(photos, skipped)))
    names = [os.fsdecode(photo) for photo in photos]
    rows = []
    for name, found in zip(names, classifier.predict(names), strict=True):
        values = [value for other, share in found.top for value in (other, f"{share:.6f}")]
        rows.append(dict(zip(COLUMNS, [name, *values], strict=False)))
    write_rows(file, rows, COLUMNS)
    number = "1 image" if len(rows) == 1 else f"{len(rows):,} images"
    print("; ".join([f"predictions: {file} ({number})", *([str(skipped)] if skipped else [])]))


def check_not_of_others(table: Path, images: Sequence[Path]) -> None:
    """Raise ``NdkdError`` if a table, whose name is not the user's choice, has the predictions of other photos."""
    try:
        with open(table, newline="", encoding="utf-8", errors="surrogateescape") as lines:
            before = next(csv.DictReader(lines), {}).get("file")
    except OSError:  # there is none
        return
    ways = [(Path(before or ""), images), (Path(before or "").absolute(), [place.absolute() for place in images])]
    if before and not any(photo.is_relative_to(place) for photo, places in ways for place in places):
        raise NdkdError(
            f"{table} has the predictions of other photos, {before} the first: name a table with --out FILE"
        )


def photos_in(place: Path, skipped: Skipped, skips: bool) -> list[bytes]:
    """The photos in a folder, folder by folder in the order of their names, or the one photo."""
    if place.is_file():
        return [os.fsencode(place)]
    check_link(place)
    if not place.is_dir():
        raise NdkdError(f"images {place} does not exist; give a folder of photos or a photo")
    found = list(images_below(place, {}, skipped, skips))
    if not found:
        more = f"; {skipped}" if skipped else ""
        raise NdkdError(f"images {place}: there is no photo in it{more}")
    return found
