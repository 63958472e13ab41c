"""``ndkd export --quantize int8``: eight bits in the file, and an honest word on what they cost."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ndkd.commands.export as exporting
import ndkd.commands.export_card as export_card
from ndkd.commands.export_int8 import accuracies, training_images
from ndkd.data import DigitsDataModule
from ndkd.runs import Run
from tests.command import ndkd
from tests.small_network import configuration

CONFIG = configuration(2, "{class_path: DigitsDataModule}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("int8"))
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("NDKD_TRUST", "tests.small_network")
        patch.setattr("sys.argv", ["ndkd"])
        patch.setattr(export_card, "SECONDS", 1e-3)
        Path("config.yaml").write_text(CONFIG)
        status, _, err = ndkd("fit", "--config", "config.yaml", "--run_dir", "run")
        assert status == 0, err
        yield Run("run")


def export(run, name, *options):
    out = Path(name, "model.onnx")
    return out, *ndkd("export", run.checkpoint("last"), "--format=onnx", "--out", out, *options)


@pytest.fixture(scope="module")
def small(run):
    """The file, what was printed, and the card."""
    out, status, printed, err = export(run, "small", "--quantize", "int8", "--calibration", "200", "--max_drop", "5")
    assert (status, err) == (0, "")
    return out, printed, (out.parent / "README.md").read_text()


def test_weights_and_activations_have_eight_bits(small):
    import onnx

    graph = onnx.load(small[0]).graph
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer if len(tensor.dims) > 1}
    assert kinds - {"INT64"} == {"INT8"}  # indices are no weights
    scales = {tensor.name: tensor for tensor in graph.initializer if "scale" in tensor.name}
    assert max(np.prod(tensor.dims) for tensor in scales.values()) == 32  # one for each channel
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert sorted(file.name for file in small[0].parent.iterdir()) == ["README.md", "model.onnx", "preprocess.json"]


def test_the_accuracies_are_those_of_the_files(run, small):
    plain, status, _, err = export(run, "plain")
    assert (status, err) == (0, "")
    data = DigitsDataModule()
    data.setup()
    found = {}
    for name, file in {"before": plain, "after": small[0]}.items():
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        pixels, target = (torch.cat(parts) for parts in zip(*data.test_dataloader(), strict=True))
        images = (pixels - torch.tensor(data.mean).view(-1, 1, 1)) / torch.tensor(data.std).view(-1, 1, 1)
        (logits,) = session.run(["logits"], {"images": images.contiguous().numpy()})
        found[name] = 100 * (logits.argmax(1) == target.numpy()).mean()
    line = f"{found['after']:.2f} %, before {found['before']:.2f} %, on 1,000 images"
    assert found["before"] == pytest.approx(100 * run.status()["results"]["last"]["test/acc1"], abs=0.01)
    assert f"accuracy    {line}" in small[1]
    assert f"| accuracy | {line} |" in small[2]
    assert "calibrated on 200 training images" in small[2]
    before, after = re.search(r"\| file \| ([\d.]+) MB, before ([\d.]+) MB", small[2]).groups()[::-1]
    assert float(before) >= float(after) > 0
    assert re.search(r"\| latency \| .* at batch 64; before .* at batch 64; median", small[2])


def test_an_accuracy_that_falls_too_far_leaves_nothing(run, monkeypatch):
    monkeypatch.setattr(exporting, "accuracies", lambda *_: ({"before": 90.0, "after": 88.9}, 1000))
    before = sorted(Path().rglob("*"))
    _, status, printed, err = export(run, "worse", "--quantize", "int8")
    assert (status, printed) == (2, "")
    assert "in eight bits its accuracy is 88.90 %, before 90.00 %, on 1,000 images, which is more than 1 points" in err
    assert sorted(Path().rglob("*")) == before
    assert export(run, "allowed", "--quantize", "int8", "--max_drop", "1.2")[1] == 0


def test_a_network_that_cannot_do_with_eight_bits(run, monkeypatch):
    """Calibrated on black images alone it sees nothing else: measured, not claimed."""
    monkeypatch.setattr(exporting, "training_images", lambda *_: iter([torch.zeros(2, 3, 32, 32)]))
    _, status, _, err = export(run, "blind", "--quantize", "int8")
    assert status == 2
    assert re.search(r"in eight bits its accuracy is [\d.]+ %, before [\d.]+ %, on 1,000 images", err)
    assert not Path("blind").exists()


MISTAKES = {
    "weights": (
        ["--format=torch", "--out=x/m.pt", "--quantize=int8"],
        "--quantize int8 is for ONNX, got --format torc",
    ),
    "alone": (
        ["--format=onnx", "--out=x/m.onnx", "--max_drop=2"],
        "--max_drop 2 has no effect without --quantize int8",
    ),
    "none": (
        ["--format=onnx", "--out=x/m.onnx", "--quantize=int8", "--calibration=0"],
        "wanted at least 1 image, got 0",
    ),
    "nan": (["--format=onnx", "--out=x/m.onnx", "--quantize=int8", "--max_drop=nan"], "0 to 100, got nan"),
    "kind": (["--format=onnx", "--out=x/m.onnx", "--quantize=int4"], "invalid choice: 'int4'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, run):
    options, message = MISTAKES[mistake]
    status, _, err = ndkd("export", run.checkpoint("last"), *options)
    assert (status, message in err, err.count("\n")) == (2, True, 1), err


def test_calibration_images_are_of_all_classes_and_not_augmented():
    data = DigitsDataModule(batch_size=32)
    data.setup()
    images = torch.cat(list(training_images(data, 100)))
    assert images.shape == (100, 3, 32, 32)
    known = {
        image.numpy().tobytes(): int(k)
        for batch, target in data.class_mean_dataloader()
        for image, k in zip(batch.contiguous(), target, strict=True)
    }
    classes = [known[image.numpy().tobytes()] for image in images]
    assert set(classes) == set(range(10))
    assert len(torch.cat(list(training_images(data, 10_000)))) == data.sizes["train"]


def test_accuracies_count_every_image_once():
    data = DigitsDataModule(batch_size=64)
    data.setup()
    share = 100 * np.mean([target == 0 for _, batch in data.test_dataloader() for target in batch])
    found, number = accuracies({"zero": lambda images: torch.eye(10)[[0] * len(images)]}, data, torch.Tensor.contiguous)
    assert (found["zero"], number) == (pytest.approx(share), 1000)
