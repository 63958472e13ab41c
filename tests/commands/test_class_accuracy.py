"""What a test says of each class."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ndkd.commands.class_accuracy import of_each_class, of_unmeasured
from ndkd.distillation.accuracies import accuracies
from ndkd.runs import Run
from tests.command import ndkd

CONFIG = """
model:
  class_path: DistillationModule
  init_args:
    student: {name: cifar/resnet8}
    losses: {ce: {loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target], class_weights: balanced}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01}}
data: {class_path: ImageFolderDataModule, init_args: {root: images, batch_size: 4, image_size: 16, num_workers: 0}}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}
"""
FILES = {"train": "aaaaaaaabbbc", "val": "aaab", "test": "aaa"}


def module(right, images, names=None):
    """One whose last evaluation had so many of each class right."""
    metrics = accuracies(len(images))
    target = torch.arange(len(images)).repeat_interleave(torch.tensor(images))
    is_right = torch.cat([torch.arange(n) < r for r, n in zip(right, images, strict=True)])
    metrics.update(torch.eye(len(images))[torch.where(is_right, target, (target + 1) % len(images))], target)
    metrics.compute()
    metrics.reset()
    return SimpleNamespace(metrics=metrics, class_names=names)


def test_the_least_accurate_classes_come_first():
    assert of_each_class(module([3, 1, 0, 2], [4, 1, 0, 4], ["cat", "dog", "emu", "fox"])) == [
        "accuracy of each class:",
        "  50.00%  2 of 4  fox",
        "  75.00%  3 of 4  cat",
        " 100.00%  1 of 1  dog",
    ]
    lines = of_each_class(module([1] * 30, [1] * 29 + [2]))
    assert (len(lines), lines[1], lines[-1]) == (22, "  50.00%  1 of 2  29", "and 10 classes of a higher one")


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ([1, 1, 1], []),
        ([0, 2, 0], ["ndkd: all test images are of one class, dog: their accuracy says nothing about the other 2"]),
        ([1, 2, 0], ["ndkd: no test image of class emu: nothing is measured of it"]),
    ],
)
def test_what_was_not_measured(images, line):
    assert of_unmeasured(module(images, images, ["cat", "dog", "emu"]), "test") == line


@pytest.mark.parametrize("of", [of_each_class, lambda module: of_unmeasured(module, "test")])
def test_another_task_has_no_classes_to_tell(of):
    assert of(SimpleNamespace(class_names=None)) == []


def test_unbalanced_images_from_the_command_line(folder):
    random = np.random.default_rng(0)
    Path("rows.csv").write_text("file,label,split\n")
    with Path("rows.csv").open("a") as rows:
        for split, classes in FILES.items():
            for number, name in enumerate(classes):
                file = f"{split}{number}.png"
                Path("images").mkdir(exist_ok=True)
                Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(Path("images", file))
                rows.write(f"{file},{name},{split}\n")
    Path("own.yaml").write_text(CONFIG)
    status, out, err = ndkd("fit", "--config", "own.yaml", "--data.init_args.labels=rows.csv", "--run_dir=run")
    assert status == 0, err
    no_val = "ndkd: no validation image of class c: nothing is measured of it"
    one = "ndkd: all test images are of one class, a: their accuracy says nothing about the other 2"
    assert out.splitlines()[:4] == [
        "objective: 1·ce (class weights 0.5 to 4)",
        "data: 12 images, 3 classes, validation 4, test 3; listed in rows.csv",
        no_val,
        one,
    ]
    assert out.count(one) == 1
    assert "val/balanced_acc" in Run("run").metrics()[0]
    assert "test/balanced_acc" in Run("run").status()["results"]["last"]
    for command, words in (("test", one), ("validate", no_val)):
        status, out, err = ndkd(command, "--ckpt_path", Run("run").checkpoint("last"))
        assert status == 0, err
        assert f"{command[:3] if command == 'validate' else 'test'}/balanced_acc" in out
        assert "accuracy of each class:" in out
        assert " of 3  a" in out
        assert out.splitlines()[-1] == words
    assert ndkd("report", "run")[0] == 0
    page = Path("run/report/index.html").read_text()
    balanced = float(Run("run").metrics()[0]["val/balanced_acc"])
    assert f'<td data-label="balanced accuracy" class="n">{100 * balanced:.2f} %</td>' in page
    assert "Accuracy per class" in page
