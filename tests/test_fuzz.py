"""Two hundred configurations with mistakes in them: each runs, or is refused in one line."""

import random
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ndkd.commands.training import TrainingCLI
from ndkd.models import build_model
from tests.command import REPOSITORY, ndkd
from tests.mutations import mutation

WIDTHS = {"widths": [4, 4, 4, 4]}
MODEL = {"name": "cifar/resnet8", "kwargs": WIDTHS}
CONFIGS = {
    "digits/kd++.yaml": 10,
    "cifar100/r56_r20/kd++.yaml": 3,
    "imagefolder/kd++.yaml": 3,
}  # and the number of classes
ONE_STEP = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with images of three classes and a teacher for each number of classes."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["ndkd"])
        patch.setenv("PL_GLOBAL_SEED", "0")
        pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 2, 8, 8, 3), np.uint8)
        for part, name, number in np.ndindex(3, 3, 2):
            file = Path("images", ("train", "val", "test")[part], "abc"[name], f"{number}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[part, name, number]).save(file)
        for number in set(CONFIGS.values()):
            torch.save(build_model("cifar/resnet8", number, **WIDTHS).state_dict(), f"teacher{number}.pth")
        kept = {}  # making a parser takes longer than most refusals

        def setup_parser(cli, *options):
            if not kept:
                before = set(vars(cli))
                make(cli, *options)
                kept.update({name: value for name, value in vars(cli).items() if name not in before})
            vars(cli).update(kept)

        make = TrainingCLI.setup_parser
        patch.setattr(TrainingCLI, "setup_parser", setup_parser)
        yield folder


def small(name):
    """A shipped configuration with its files in it, on tiny models and images."""

    def read(value):
        return yaml.safe_load((folder / value).read_text()) if isinstance(value, str) else value

    folder = REPOSITORY / "configs" / Path(name).parent
    config = read(Path(name).name)
    options, data = config["model"]["init_args"], read(config["data"])
    taps = {"taps": ["layer1", "layer2"]} if "taps" in options["student"] else {}
    options["student"] = MODEL | taps
    options["teacher"] = MODEL | taps | {"checkpoint": f"teacher{CONFIGS[name]}.pth"}
    options |= {key: read(options[key]) for key in ("optimizer", "lr_scheduler")}
    if data["class_path"] == "CIFAR100DataModule":
        data = {"class_path": "InMemoryImageFolderDataModule", "init_args": {"root": "images", "batch_size": 4}}
    elif data["class_path"] == "ImageFolderDataModule":
        data["init_args"] = {"root": "images", "image_size": 8, "batch_size": 2, "num_workers": 0}
    return config | {"data": data}


@pytest.mark.parametrize(("name", "seed"), [(name, seed) for seed, name in enumerate(CONFIGS)])
def test_a_configuration_with_a_mistake_runs_or_is_one_line(place, name, seed):
    draw, config = random.Random(seed), small(name)
    outcomes = []
    for number in range(67):
        text = mutation(config, draw) if number else yaml.safe_dump(config)
        Path("mutation.yaml").write_text(text, encoding="utf-8")
        rmtree("run", ignore_errors=True)
        status, _, err = ndkd("fit", "--config", "mutation.yaml", "--run_dir", "run", *ONE_STEP)
        lines = err.strip().splitlines()
        is_refused = status == 2 and [line for line in lines if line.startswith("ndkd: ")] == lines[-1:] != []
        assert status == 0 or is_refused and "Traceback" not in err, f"{err}\n{text}"
        outcomes.append(status)
        assert outcomes[0] == 0, err
    assert 5 <= outcomes.count(0) <= 30  # it is neither all nonsense nor all harmless
