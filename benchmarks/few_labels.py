"""A set of images of which few have a label: links to some of each class, and to all others in one folder.

The choice depends on the files' names alone. The images that a set has to validate and to test on stay labelled.

    python benchmarks/few_labels.py data/cifar10-jpeg data/cifar10-few --labels 4000
    ndkd compare --seeds 0 1 2 --out runs/cifar10-few cifar10/few_labels/student.yaml cifar10/few_labels/kd++.yaml \\
        cifar10/few_labels/kd++.yaml,cifar10/few_labels/overlays/unlabeled.yaml \\
        cifar10/few_labels/kd++.yaml,cifar10/few_labels/overlays/pseudo_labels.yaml
"""

import argparse
import os
from pathlib import Path

from ndkd.data.image_files import ImageFiles
from ndkd.data.layouts import find_images, split_off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of the set")
    parser.add_argument("out", type=Path, help="new folder, for labelled/ and unlabelled/")
    parser.add_argument("--labels", type=int, default=4000, help="training images that keep their label")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} is there already: remove it, or name another folder")
    found = find_images(options.root)
    train = found.splits["train"]
    if not len(found.class_names) <= options.labels < len(train.target):
        parser.error(f"--labels: wanted {len(found.class_names)} to {len(train.target) - 1}, got {options.labels}")
    others, kept, _ = split_off(train, options.labels / len(train.target), options.root)
    for split, files in {**found.splits, "train": kept}.items():
        link(files, options.out / "labelled" / split, found.class_names)
    link(others, options.out / "unlabelled", None)
    print(f"{len(kept.target):,} with labels, {len(others.target):,} without: {options.out}")


def link(files: ImageFiles, folder: Path, class_names: tuple[str, ...] | None) -> None:
    """Links in folders of classes, or in one folder under names that do not tell the class."""
    folder.mkdir(parents=True)
    for number, (path, label) in enumerate(zip(files.paths.tolist(), files.target.tolist(), strict=True)):
        file = Path(os.fsdecode(path)).resolve()
        place = folder if class_names is None else folder / class_names[label]
        place.mkdir(exist_ok=True)
        (place / f"{number:06}{file.suffix}").symlink_to(os.path.relpath(file, place.resolve()))  # both can be moved


if __name__ == "__main__":
    main()
