"""``ndkd predict --images``: the classes of new photos, as CSV."""

import os
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

from ndkd.classifier import of_checkpoint
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
    classifier, run = of_checkpoint(ckpt_path, trust)
    file = out or run.path / f"predictions_of_{images.absolute().stem or 'images'}.csv"
    check_folder(file.parent, "--out FILE")
    if on_error == "skip":
        photos = list(compress(photos, readable(photos, skipped)))
    names = [os.fsdecode(photo) for photo in photos]
    rows = []
    for name, found in zip(names, classifier.predict(names), strict=True):
        values = [value for other, share in found.top for value in (other, f"{share:.6f}")]
        rows.append(dict(zip(COLUMNS, [name, *values], strict=False)))
    write_rows(file, rows, COLUMNS)
    print("; ".join([f"predictions: {file} ({len(rows)} images)", *([str(skipped)] if skipped else [])]))


def photos_in(place: Path, skipped: Skipped) -> list[bytes]:
    """The photos in a folder, folder by folder in the order of their names, or the one photo."""
    if place.is_file():
        return [os.fsencode(place)]
    if not place.is_dir():
        raise NdkdError(f"images {place} does not exist; give a folder of photos or a photo")
    found = list(images_below(place, {}, skipped))
    if not found:
        more = f"; {skipped}" if skipped else ""
        raise NdkdError(f"images {place}: there is no photo in it{more}")
    return found
