"""``ndkd predict --images``: the classes of new photos, as CSV."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ndkd.classifier import of_checkpoint
from ndkd.data.image_files import ImageFiles, Skipped, is_image, readable
from ndkd.errors import NdkdError
from ndkd.files import check_folder, write_atomically
from ndkd.runs import Run

COLUMNS = [
    "file",
    "prediction",
    "confidence",
    *(f"{name}_{k}" for k in range(2, 6) for name in ("class", "confidence")),
]


def predict(
    ckpt_path: Path, images: Path, out: Path | None = None, on_error: str = "stop", trust: Sequence[str] = ()
) -> None:
    """Write file, prediction, confidence and the next four classes of every photo.

    Args:
        ckpt_path: of a run, in its run folder.
        images: a photo, or a folder that is searched through; what is hidden does not count.
        out: the CSV file.
        on_error: ``stop`` at a photo that cannot be read, or ``skip`` it.
        trust: packages of one's own that the run may name.

    Raises:
        NdkdError: no photo, one that cannot be read, or a checkpoint that is not a classifier's.
    """
    skipped = Skipped()
    photos = photos_in(images, skipped)
    classifier = of_checkpoint(ckpt_path, trust)
    run = Run.of_checkpoint(ckpt_path)
    if out is None and run is not None:
        out = run.path / f"predictions_of_{images.absolute().stem or 'images'}.csv"
    check_folder(Path(out or ".").parent, "--out FILE")
    if on_error == "skip":
        paths = np.array([os.fsencode(photo) for photo in photos])
        whole = readable(ImageFiles(paths, np.zeros(len(paths), np.int64)), skipped)
        photos = [Path(os.fsdecode(path)) for path in whole.paths.tolist()]
    rows = []
    for photo, found in zip(photos, classifier.predict(photos), strict=True):
        values = [value for name, share in found.top for value in (name, f"{share:.6f}")]
        rows.append(dict(zip(COLUMNS, [str(photo), *values], strict=False)))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    file = write_atomically(Path(out or "."), lambda file: file.write(text.getvalue().encode()))
    print("; ".join([f"predictions: {file} ({len(rows)} images)", *([str(skipped)] if skipped else [])]))


def photos_in(place: Path, skipped: Skipped) -> list[Path]:
    """The photos in a folder, in the order of their names, or the one photo."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise NdkdError(f"images {place} does not exist; give a folder of photos or a photo")
    found: list[Path] = []
    for folder, below, names in os.walk(place):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if is_image(name):
                found.append(Path(folder, name))
            elif not name.startswith("."):
                skipped.add(name)
    if not found:
        more = f"; {skipped}" if skipped else ""
        raise NdkdError(f"images {place}: there is no photo in it{more}")
    return found
