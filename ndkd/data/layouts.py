"""How people arrange their photos: folders of splits, of classes alone, or a list in a CSV file."""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ndkd.data.folders import check_link, folder_names, leads_nowhere
from ndkd.data.image_files import ImageFiles, Skipped, images_of_classes, is_image, readable
from ndkd.errors import NdkdError, shortened, suggestion

# what people call the folders of splits, in small letters
NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing")}
COLUMNS = ("file", "label", "split")


@dataclass
class Found:
    """The images of a set.

    Args:
        class_names: in the order of their indices.
        splits: ``train`` and, where the set has them, ``val`` and ``test``.
        layout: how they lay there, in words.
        skipped: what lay beside them.
    """

    class_names: tuple[str, ...]
    splits: dict[str, ImageFiles]
    layout: str
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def remarks(self) -> list[str]:
        """What to say of them beside their numbers."""
        return [self.layout, *([str(self.skipped)] if self.skipped else [])]


def image_set(
    root: Path, labels: Path | None, fractions: dict[str, float], skips: bool, unlabeled: Path | None = None
) -> Found:
    """The images of a set with the splits that are wanted of it.

    Args:
        root: the folder.
        labels: a CSV file that lists the images, or None.
        fractions: of ``arranged``.
        skips: leave out what cannot be read, and classes without images.
        unlabeled: a folder of other images, which may lie beside those of the splits.

    Raises:
        NdkdError: of ``find_images`` and ``arranged``.
    """
    found = find_images(root, labels, skips, unlabeled)
    if skips:
        splits = {}
        for name, files in found.splits.items():
            whole = readable(files.paths.tolist(), found.skipped)
            splits[name] = ImageFiles(files.paths[whole], files.target[whole])
        found = replace(found, splits=splits)
    return arranged(found, root, fractions)


def find_images(
    root: Path, labels: Path | None = None, skip_empty: bool = False, unlabeled: Path | None = None
) -> Found:
    """The images below a folder, or those that a CSV file lists.

    Args:
        root: holds ``train`` and others (also ``Train``, ``valid``, ``validation``, …), or the folders of the classes.
        labels: a CSV file with columns ``file`` and ``label`` and, where there are splits, ``split``.
        skip_empty: a class without images is left out.
        unlabeled: a folder that is used for something else, of which nothing is said.

    Raises:
        NdkdError: no such folder or file, classes that differ between splits, a class without images.
    """
    if labels is not None:
        beside = root / labels  # people name it as they see it there
        return _listed(beside if beside.is_file() and not Path(labels).is_file() else Path(labels), root)
    check_link(root)
    if not root.is_dir():
        raise NdkdError(f"there is no folder {root}: wanted {root}/train/CLASS/IMAGE.jpg or {root}/CLASS/IMAGE.jpg")
    folders = split_folders(root)
    skipped = Skipped()
    if "train" not in folders:
        if folders:
            there = ", ".join(str(folder) for folder in folders.values())
            raise NdkdError(
                f"{root} holds {there}, but no folder of training images: wanted {root}/train/CLASS/IMAGE.jpg"
            )
        names, files = images_of_classes(root, skipped, skip_empty)
        return Found(tuple(names), {"train": files}, "class folders", skipped)
    read = {name: images_of_classes(folder, skipped, skip_empty) for name, folder in folders.items()}
    _check_same_classes(root, {folders[name].name: names for name, (names, _) in read.items()})
    layout = ", ".join(f"{folder.name}/" for folder in folders.values())
    used = [folder.name for folder in folders.values()]
    if unlabeled is not None and Path(unlabeled).resolve().parent == root.resolve():
        used.append(Path(unlabeled).name)
    if others := folder_names(root, lambda name: name not in used and not leads_nowhere(root / name)):
        layout += f"; folders beside them that are not used: {shortened(others)}"
    return Found(tuple(read["train"][0]), {name: files for name, (_, files) in read.items()}, layout, skipped)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of splits below a folder.

    Raises:
        NdkdError: two that would be the same split, or one that is a link to nowhere.
    """
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        there = folder_names(root, lambda name: name.lower() in names)  # noqa: B023  # called at once
        if len(there) > 1:
            raise NdkdError(f"{root} holds {' and '.join(there)}, both could be the split {split}: rename one")
        if there:
            found[split] = root / there[0]
    return found


def split_off(files: ImageFiles, fraction: float, root: Path) -> tuple[ImageFiles, ImageFiles, list[int]]:
    """A share of each class, chosen by the files' names alone: the same for every seed, on every machine.

    Of each class at least one image stays, and where there are two, at least one is split off.

    Args:
        files: of which.
        fraction: of the images, 0 to 1.
        root: the names count from here.

    Returns:
        The others, those that are split off, and the classes of a single image, none of which was.
    """
    digests = [hashlib.sha256(os.path.relpath(path, os.fsencode(root))).digest() for path in files.paths.tolist()]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    of_class: dict[int, list[int]] = {}
    for index in order:
        of_class.setdefault(int(files.target[index]), []).append(index)
    chosen = {
        index
        for indices in of_class.values()
        for index in indices[: min(len(indices) - 1, max(1, round(fraction * len(indices))))]
    }
    mask = np.array([index in chosen for index in range(len(digests))], bool)
    single = sorted(number for number, indices in of_class.items() if len(indices) == 1)
    return ImageFiles(*(part[~mask] for part in files)), ImageFiles(*(part[mask] for part in files)), single


def arranged(found: Found, root: Path, fractions: dict[str, float]) -> Found:
    """The same images with splits that the set does not have by itself, taken from the training images.

    Args:
        found: of ``find_images``.
        root: the names of the files count from here.
        fractions: of all training images, by the split that is wanted; 0 for none.

    Raises:
        NdkdError: fractions that leave nothing to train on.
    """
    wanted = {split: share for split, share in fractions.items() if share and split not in found.splits}
    if not all(0 <= share < 1 for share in fractions.values()) or sum(wanted.values()) >= 1:
        shown = ", ".join(f"{split}_fraction {share}" for split, share in fractions.items())
        raise NdkdError(f"wanted fractions from 0 to below 1 that leave images to train on, got {shown}")
    splits, layout, left = dict(found.splits), found.layout, 1.0
    for split, share in wanted.items():
        splits["train"], splits[split], single = split_off(splits["train"], share / left, root)
        left -= share
        if not len(splits[split].target):
            raise NdkdError(
                f"{root}: no class has two images, of which one could be split off as {split}; add images, or set "
                f"{split}_fraction to 0 and give a folder of its own"
            )
        layout += f", {share:.0%} of the training images split off as {split}"
        if single:
            names = shortened([found.class_names[number] for number in single])
            layout += f" (of {names}, a single image each, none)"
    return replace(found, splits=splits, layout=layout)


def _check_same_classes(root: Path, classes: dict[str, Sequence[str]]) -> None:
    first, *others = classes
    for split in others:
        pairs = (first, split), (split, first)
        alone = {one: [name for name in classes[one] if name not in classes[other]] for one, other in pairs}
        if any(alone.values()):
            where = "; ".join(f"only in {one}: {', '.join(names[:5])}" for one, names in alone.items() if names)
            raise NdkdError(f"{root}: {first} and {split} have different classes; {where}")


def _listed(labels: Path, root: Path) -> Found:
    """The images in a CSV file; its names count from the root or else from the file's own folder."""
    rows = _rows(labels)
    classes = tuple(sorted({row["label"] for row in rows}))
    index = {name: number for number, name in enumerate(classes)}
    splits: dict[str, tuple[list[bytes], list[int]]] = {}
    skipped, missing = Skipped(), []
    for row in rows:
        places = [root / row["file"], labels.parent / row["file"]]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            missing.append(row["file"])
        elif is_image(file.name):
            paths, target = splits.setdefault(_split_named(row.get("split") or "train", labels), ([], []))
            paths.append(os.fsencode(file))
            target.append(index[row["label"]])
        elif not skipped.add(file.name):
            raise NdkdError(f"{labels}: {row['file']} is not an image by its name; correct or remove its line")
    if missing:
        raise NdkdError(
            f"{labels}: {len(missing)} of its files are not there: {shortened(missing)}; names count from {root}"
        )
    if "train" not in splits:
        raise NdkdError(f"{labels} lists no training image: wanted rows of the split train")
    ordered = [name for name in NAMES if name in splits]
    files = {name: ImageFiles(np.array(splits[name][0]), np.array(splits[name][1], np.int64)) for name in ordered}
    untaught = [name for name in classes if index[name] not in set(files["train"].target.tolist())]
    if untaught:
        raise NdkdError(f"{labels}: no training image of class {shortened(untaught)}; add some or leave the class out")
    without = sum(not row.get("split", "train") for row in rows)
    layout = f"listed in {labels.name}" + (f", {without} without a split in train" if without else "")
    return Found(classes, files, layout, skipped)


def _rows(labels: Path) -> list[dict[str, str]]:
    if not labels.is_file():
        raise NdkdError(f"labels {labels} does not exist; give a CSV file with the columns file and label")
    try:
        text = labels.read_text(encoding="utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        lines = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
        found = [(lines.line_num, [value.strip() for value in line]) for line in lines if any(line)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise NdkdError(f"labels {labels} is not a CSV file in UTF-8; save it as one") from error
    (_, header), *rest = found or [(1, [])]
    names = [name.lower() for name in header]
    if missing := [name for name in COLUMNS[:2] if name not in names]:
        has = ", ".join(filter(None, header)) or "nothing"
        raise NdkdError(f"labels {labels} has no column {' and '.join(missing)}, its first line has {has}")
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise NdkdError(f"labels {labels} has the column {twice[0]} twice; keep one")
    if not rest:
        raise NdkdError(f"labels {labels} lists no image: wanted a line for each below the first")
    rows = [_row(f"labels {labels}, line {number}", names, values) for number, values in rest]
    twice = [name for name, times in Counter(row["file"] for row in rows).items() if times > 1]
    if twice:
        raise NdkdError(f"labels {labels} lists {shortened(twice)} more than once; keep one line of each")
    return rows


def _row(line: str, names: list[str], values: list[str]) -> dict[str, str]:
    """The columns of one line of a list, by their names."""
    if any(values[len(names) :]):
        raise NdkdError(
            f"{line}: wanted {len(names)} fields as in the first line, got {len(values)}; a name with the separator in "
            "it belongs in quotes"
        )
    row = dict(zip(names, [*values, *[""] * len(names)], strict=False))
    if not (row["file"] and row["label"]):
        raise NdkdError(f"{line}: wanted a file and a label, got {row['file']!r}, {row['label']!r}")
    return row


def _split_named(name: str, labels: Path) -> str:
    for split, names in NAMES.items():
        if name.strip().lower() in names:
            return split
    raise NdkdError(f"labels {labels}: there is no split {name!r}; {suggestion(name, list(NAMES))}")
