"""What could be taken for a configuration or for data but makes no sense: refused in one line."""

import json
import os
from pathlib import Path
from shutil import rmtree

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image

from ndkd.callbacks.class_means import ClassMeans, read_class_means
from ndkd.commands.build_errors import in_one_line
from ndkd.data.coco import read_split
from ndkd.models import ModelConfig
from tests.command import ndkd, refusal

# ---- runs ------------------------------------------------------------------------------------------------------------


def test_an_exception_while_a_run_is_built_is_one_line():
    def fails():
        with in_one_line():
            raise KeyError("x\ny")

    message = refusal(fails)
    assert message.startswith("this configuration cannot be built: KeyError: 'x\\ny' (in ")


def test_an_exception_in_a_step_is_shown_whole(workplace):
    """It is a fault of the code."""
    options = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--run_dir=run"]
    broken = ["--trainer.callbacks=[tests.test_nonsense.Broken]"]
    with pytest.raises(ZeroDivisionError):
        ndkd("fit", "--config", "configs/digits/student.yaml", *options, *broken)


class Broken(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        raise ZeroDivisionError


REFUSED = {
    "--data.init_args.batch_size=null": "data.init_args.batch_size: wanted a value, got null",
    "--model.init_args.optimizer.init_args.lr=null": "model.init_args.optimizer.init_args.lr: wanted a value, got null",
    "--trainer.devices=x": "trainer: ",
    "--trainer.devices=-1": "trainer: ",
    "--trainer.accelerator=tpu": "trainer: ",
    "--model.init_args.losses.ce.loss.init_args.reduction=none": "loss ce: wanted one number for a batch",
    "--model.init_args.losses.ce.inputs=[target, target]": "no loss reads anything of the student",
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_of_a_run(workplace, option):
    options = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--run_dir=run"]
    status, _, err = ndkd("fit", "--config", "configs/digits/student.yaml", *options, option)
    assert status == 2
    assert err.startswith(f"ndkd: {REFUSED[option]}")
    assert err.count("\n") == 1


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_image_of_coco_that_lies_elsewhere(folder):
    Path("outside.png").touch()
    entry = {"id": 1, "width": 8, "height": 8}
    tables = {"categories": [{"id": 1, "name": "a"}], "annotations": []}
    for name in ("../outside.png", str(folder / "outside.png"), "a/../../outside.png"):
        Path("c.json").write_text(json.dumps(tables | {"images": [entry | {"file_name": name}]}))
        message = refusal(read_split, Path("c.json"), Path("images"), "train")
        assert message == f"c.json: image 1 lies outside images: file_name {name!r}; correct it"


def test_a_pipe_instead_of_a_file_to_read(folder):
    for name in ("p.json", "p.npz"):
        os.mkfifo(name)
        assert refusal(read_class_means, name) == f"class means {name}: wanted a file"
    assert "not an ordinary file" in refusal(read_split, Path("p.json"), None, "train")


# ---- teachers and classes --------------------------------------------------------------------------------------------


def test_class_means_that_point_nowhere(folder, fit, make_module, terms):
    np.savez("zero.npz", class_means=np.zeros((10, 64)))
    message = refusal(fit, make_module(terms("nd")), ClassMeans(file=Path("zero.npz")))
    assert message == "class means zero.npz: all numbers are 0, they point nowhere; give another file"


def test_a_teacher_whose_embeddings_are_zero(fit, make_module, terms, teacher_checkpoint, folder):
    torch.save({name: torch.zeros_like(w) for name, w in torch.load(teacher_checkpoint).items()}, "zero.pth")
    module = make_module(terms("nd"), teacher=ModelConfig("cifar/resnet8", checkpoint=Path("zero.pth")))
    assert refusal(fit, module).startswith("the teacher's embeddings are all 0, no class has a direction")


def test_class_means_of_no_images():
    assert refusal(ClassMeans, max_images=0) == "class_means.max_images: wanted at least 1, got 0"


def test_data_of_one_class(images):
    for split in ("train", "test"):
        Path(split, "a").mkdir(parents=True, exist_ok=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(Path(split, "a", f"{number}.png"))
    rmtree("train/b")
    Path("train/a/1.png").unlink()
    ce = "{loss: torch.nn.CrossEntropyLoss, inputs: [student.logits, target]}"
    Path("c.yaml").write_text(
        f"trainer: {{max_epochs: 1, accelerator: cpu}}\nmodel: {{class_path: DistillationModule, init_args: {{student: "
        f"{{name: cifar/resnet8}}, losses: {{ce: {ce}}}}}}}\n"
        "data: {class_path: InMemoryImageFolderDataModule, init_args: {root: ., batch_size: 2}}"
    )
    status, _, err = ndkd("fit", "--config", "c.yaml", "--run_dir", "run")
    assert (status, err) == (2, "ndkd: the data has 1 class, wanted at least 2: with one alone any answer is right\n")
