"""Distilled detectors: what runs on which regions, the losses, class means, AP and pictures."""

import json
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ndkd.callbacks import AutoWeights, ClassMeans, TermGradients, auto_weights
from ndkd.data import CocoDataModule
from ndkd.data.drawn_shapes import draw_set
from ndkd.distillation.detection import DetectionDistillationModule
from ndkd.distillation.objective import LossTerm
from ndkd.distillation.proxy_run import measure_terms
from ndkd.errors import NdkdError
from ndkd.losses import DKDLoss, KDLoss, NDLoss, ReviewKDLoss, kd_loss, nd_loss
from ndkd.models import ModelConfig, build_model
from ndkd.models.detectors import SteadyBatchNorm2d, build_detector
from tests.command import REPOSITORY, ndkd

SMALL = {
    "min_size": [64, 80],
    "max_size": 96,
    "rpn_post_nms_top_n_train": 30,
    "rpn_post_nms_top_n_test": 20,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
}
SET = {"train": 6, "val": 5, "size": 64}
DRAWN = [f"--data.init_args.{name}={number}" for name, number in {"train_size": 6, "val_size": 5, "size": 64}.items()]
DRAWN += ["--data.init_args.num_workers=0"]
PARTS = {
    "objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
}


def terms(**others):
    own = {name: LossTerm(nn.Identity(), inputs=[f"student.extra.{loss}"]) for name, loss in PARTS.items()}
    return own | others


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Drawn shapes in COCO's format: an image without boxes and one with a crowd among them."""
    folder = tmp_path_factory.mktemp("coco") / "shapes"
    draw_set(folder, **SET)
    return folder


@pytest.fixture
def data(shapes):
    train, val = (shapes / "annotations" / f"instances_{split}.json" for split in ("train", "val"))
    return CocoDataModule(train, val, batch_size=2, num_workers=0)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """Random weights of a detector of the shapes' six classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = build_model("detector/resnet18", 6, **SMALL)
    file = tmp_path_factory.mktemp("detector") / "teacher.pth"
    torch.save(model.state_dict(), file)
    return file


@pytest.fixture
def make(teacher_file):
    def module(losses, **options):
        teacher = ModelConfig("detector/resnet18", teacher_file, kwargs=SMALL)
        options = {"teacher": teacher, "optimizer": partial(torch.optim.SGD, lr=0.001), **options}
        return DetectionDistillationModule(ModelConfig("detector/resnet18", kwargs=SMALL), losses, **options)

    return module


class Calls(L.Callback):
    """Counts the calls of each detector's parts in the first step, and keeps what went in and out."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.calls, self.kept, self.batch = [], {}, batch
        self.hooks = []
        for role in ("student", "teacher"):
            model = getattr(pl_module, role).model
            parts = {"transform": model.transform, "backbone": model.backbone, "rpn": model.rpn}
            heads = model.roi_heads
            parts |= {"pool": heads.box_roi_pool, "head": heads.box_head, "predictor": heads.box_predictor}
            for name, part in parts.items():
                self.hooks.append(part.register_forward_hook(partial(self.note, role, name)))

    def note(self, role, name, module, inputs, output):
        self.calls.append((role, name))
        self.kept[role, name] = inputs, output

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.loss = outputs["loss"].detach()
        for hook in self.hooks:
            hook.remove()


# ---- a step -----------------------------------------------------------------------------------------------------


def test_each_part_runs_once_and_both_see_the_students_regions(fit, make, data):
    module, calls = make(terms(kd=LossTerm(KDLoss(1.0)), nd=LossTerm(NDLoss(), 1.5))), Calls()
    fit(module, calls, data=data, limit_train_batches=1, limit_val_batches=0)
    order = ["transform", "backbone", "rpn", "pool", "head", "predictor"]
    teachers = [name for name in order if name not in ("transform", "rpn")]
    assert calls.calls == [*(("student", name) for name in order), *(("teacher", name) for name in teachers)]
    images, regions = calls.kept["student", "backbone"][0][0], calls.kept["student", "pool"][0]
    assert torch.equal(calls.kept["teacher", "backbone"][0][0], images)
    assert all(torch.equal(*pair) for pair in zip(calls.kept["teacher", "pool"][0][1], regions[1], strict=True))
    logits, embedding = ({r: calls.kept[r, n][1] for r in ("student", "teacher")} for n in ("predictor", "head"))
    logits = {role: output[0] for role, output in logits.items()}
    assert logits["student"].shape == (sum(len(of_image) for of_image in regions[1]), 6)
    metrics = module.trainer.callback_metrics
    assert metrics["train/kd"] == pytest.approx(kd_loss(logits["student"], logits["teacher"], 1.0).item(), rel=1e-5)
    assert metrics["train/loss"] == pytest.approx(calls.loss.item(), rel=1e-5)
    parts = sum(metrics[f"train/{name}"] for name in (*PARTS, "kd")) + 1.5 * metrics["train/nd"]
    assert parts.item() == pytest.approx(calls.loss.item(), rel=1e-5)
    assert embedding["student"].shape == embedding["teacher"].shape == (len(logits["student"]), 1024)


def test_losses_are_torchvisions(fit, make, data):
    module, calls = make(terms(), teacher=None), Calls()
    calls.on_train_batch_start = lambda *args: None
    calls.on_train_batch_end = lambda trainer, module, outputs, batch, number: calls.__dict__.update(batch=batch)
    fit(module, calls, data=data, limit_train_batches=1, limit_val_batches=0)
    images, targets = calls.batch
    module.train()
    torch.manual_seed(5)
    with torch.no_grad():
        found = vars(module.forward_pair((images, targets)).student.extra)
        torch.manual_seed(5)
        wanted = module.student.model([image.float() / 255 for image in images], targets)
    assert found.keys() == wanted.keys() == set(PARTS.values())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_nd_and_labels(fit, make, data):
    """Labels are the regions' classes with the background; the mean of each is the teacher's."""
    module = make(terms(nd=LossTerm(NDLoss()), dkd=LossTerm(DKDLoss(1, 0.25, 1)), review=LossTerm(ReviewKDLoss(16))))
    fit(module, data=data, limit_val_batches=0)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        output = module.train().forward_pair(batch)
    assert output.target.min() == 0
    assert {0} < set(output.target.tolist()) <= {0, *batch[1][0]["labels"].tolist(), *batch[1][1]["labels"].tolist()}
    student, teacher = output.student, output.teacher
    assert [m.shape[1] for m in student.feature_maps] == [256] * 5
    expected = nd_loss(student.embedding, teacher.embedding, module.class_means, output.target)
    assert expected == module.losses["nd"].loss(student.projected, teacher.embedding, module.class_means, output.target)
    assert module.teacher.model.backbone.body.bn1.num_batches_tracked == 0


def test_a_term_has_the_share_that_it_is_given(fit, make, data, monkeypatch):
    measured = []
    monkeypatch.setattr(
        auto_weights, "measure_terms", lambda *given: measured.append(measure_terms(*given, steps=1)) or measured[0]
    )
    monkeypatch.setattr("ndkd.distillation.proxy_run.BATCHES", 1)
    auto = make({"kd": LossTerm(KDLoss(1.0)), "nd": LossTerm(NDLoss(), {"auto": 0.2})})
    fit(auto, AutoWeights(), TermGradients(1), data=data, limit_train_batches=1, limit_val_batches=0)
    (found,) = measured
    assert found.start.keys() == found.later.keys() == {*PARTS, "kd", "nd"}
    assert found.shares(found.later)["nd"] == pytest.approx(0.2, abs=2e-3)
    assert found.start["class"].cosine_to_ce == pytest.approx(1)
    logged = auto.trainer.callback_metrics
    assert logged["grad/class/cosine_to_ce"].item() == pytest.approx(1)
    assert {name.split("/")[1] for name in logged if name.startswith("grad/")} == {*PARTS, "kd", "nd"}


# ---- class means ------------------------------------------------------------------------------------------------


def start(fit, module, data, callback):
    fit(module, callback, data=data, limit_train_batches=1, limit_val_batches=0)
    return module.class_means


def test_class_means_are_those_of_regions_that_the_teacher_proposes(fit, make, data, capsys):
    module = make(terms(nd=LossTerm(NDLoss())))
    means = start(fit, module, data, ClassMeans())
    sums, counts = torch.zeros(6, 1024, dtype=torch.float64), torch.zeros(6)
    for batch in data.class_mean_dataloader():
        embedding, label = module.teacher_embeddings(batch)
        assert embedding.shape == (len(label), 1024)
        for row, k in zip(embedding.double(), label, strict=True):
            sums[k] += row
            counts[k] += 1
    absent = (counts == 0).nonzero().flatten().tolist()
    for k in range(6):
        torch.testing.assert_close(means[k], (sums[k] / max(1, counts[k])).float(), rtol=0, atol=1e-5)
    names = ", ".join(data.class_names[k] for k in absent)
    said = f"ndkd: no region of class {names} for its mean: the ND loss leaves it out\n" if absent else ""
    assert capsys.readouterr().out == said
    assert means[0].any()


def test_an_absent_class_gives_no_gradient(fit, make, data, capsys):
    module = make(terms(nd=LossTerm(NDLoss())))
    means = start(fit, module, data, ClassMeans(max_images=1))  # the one without boxes
    assert "no region of class circle, square, triangle, star, ring for its mean" in capsys.readouterr().out
    assert means[0].any()
    assert not means[1:].any()
    embedding = torch.randn(3, 1024, requires_grad=True)
    loss = nd_loss(embedding, torch.randn(3, 1024), means, torch.tensor([0, 2, 2]))
    loss.backward()
    assert embedding.grad[0].any()
    assert not embedding.grad[1:].any()


def test_published_means_have_the_background_last(fit, make, data, tmp_path):
    rows = torch.randn(6, 1024)
    (tmp_path / "means.json").write_text(json.dumps({str(k): row.tolist() for k, row in enumerate(rows)}))
    callback = ClassMeans(file=tmp_path / "means.json", background_last=True)
    means = start(fit, make(terms(nd=LossTerm(NDLoss()))), data, callback)
    torch.testing.assert_close(means, rows[[5, 0, 1, 2, 3, 4]])


# ---- models -----------------------------------------------------------------------------------------------------


def test_backbones():
    widths = {"resnet18": (64, 512), "resnet50": (256, 2048), "resnet101": (256, 2048), "mobilenet_v2": (24, 320)}
    for name, (first, last) in widths.items():
        with torch.device("meta"):
            model = build_detector(name, 4)
            maps = model.backbone(torch.empty(1, 3, 128, 128))
        assert [m.shape[1:] for m in maps.values()] == [(256, 32 >> k, 32 >> k) for k in range(5)]
        convolutions = [block[0] for block in model.backbone.fpn.inner_blocks]
        assert (convolutions[0].in_channels, convolutions[-1].in_channels) == (first, last)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any(isinstance(part, SteadyBatchNorm2d) for part in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_backbone_that_starts_from_a_file(tmp_path, name):
    classifier = build_model(f"torchvision/{name}", 7)
    for part in classifier.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in classifier.state_dict().items()}}, tmp_path / "backbone.pth"
    )
    model = build_detector(name, 4, pretrained=True, checkpoint=tmp_path / "backbone.pth", **SMALL).train()
    state, own = classifier.state_dict(), model.backbone.body.state_dict()
    prefix = "features." if name == "mobilenet_v2" else ""
    assert len(own) > 100
    assert all(torch.equal(value, state[f"{prefix}{key}"]) for key, value in own.items())
    before = {key: value.clone() for key, value in own.items() if "running" in key}
    model([torch.rand(3, 64, 64)], [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}])
    assert all(torch.equal(model.backbone.body.state_dict()[key], value) for key, value in before.items())
    frozen = {
        key.split(".")[0] for key, p in model.backbone.body.named_parameters() if not p.requires_grad and p.ndim > 1
    }
    assert frozen == ({"conv1", "layer1"} if name == "resnet18" else set())  # as published, FREEZE_AT 2 and 0
    norms = [part for part in model.backbone.body.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) >= 20
    assert not any(part.training or part.weight.requires_grad or part.bias.requires_grad for part in norms)
    plain = build_detector(name, 4, **SMALL)
    plain.load_state_dict(model.state_dict())  # a trained one needs no such file any more


def test_torchvisions_own_detector(tmp_path):
    """Its 91 outputs become the data's classes, by name; the boxes of a class move with it."""
    with torch.random.fork_rng(devices=[]):
        model = build_model("torchvision/fasterrcnn_resnet50_fpn", 91)
    state = {key: value for key, value in model.state_dict().items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "coco.pth")  # as published
    config = ModelConfig("torchvision/fasterrcnn_resnet50_fpn", tmp_path / "coco.pth")
    names = ("__background__", "stop sign", "person")
    predictor, old = config.build(3, None, None, names, strict=True).model.roi_heads.box_predictor, model.roi_heads
    assert torch.equal(predictor.cls_score.weight, old.box_predictor.cls_score.weight[[0, 13, 1]])
    rows = [4 * k + n for k in (0, 13, 1) for n in range(4)]
    assert torch.equal(predictor.bbox_pred.weight, old.box_predictor.bbox_pred.weight[rows])
    assert torch.equal(predictor.bbox_pred.bias, old.box_predictor.bbox_pred.bias[rows])
    with pytest.raises(NdkdError, match="coco.pth has 91 classes without names, the data has 3: train a teacher on "):
        config.build(3, None, None, ("__background__", "person", "unicorn"), strict=True)


def test_data_of_the_other_kind(fit, make, make_module, data, tiny_data):
    with pytest.raises(NdkdError, match="^a detector wants images with boxes: use a CocoDataModule$"):
        fit(make(terms(), teacher=None), data=tiny_data())
    losses = {"ce": LossTerm(nn.CrossEntropyLoss(), inputs=["student.logits", "target"])}
    with pytest.raises(NdkdError, match="^a classifier wants images of one size; detectors are a DetectionDistill"):
        fit(make_module(losses), data=data)


def test_a_backbone_that_is_not_supported():
    with pytest.raises(
        NdkdError, match="^unknown model 'detector/vgg16'; wanted a ResNet such as detector/resnet18, or"
    ):
        build_model("detector/vgg16", 4)


def test_a_classifier_is_no_detector(fit, make, data):
    module = make(terms(), teacher=None)
    module.sources["student"] = ModelConfig("torchvision/resnet18")
    with pytest.raises(NdkdError, match="^wanted a detector such as detector/resnet18, torchvision/resnet18 is none$"):
        fit(module, data=data)


# ---- through the command line -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(shapes, teacher_file, tmp_path_factory):
    """A short run of KD++ on the shapes in a folder of its own, and the options for it."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr("sys.argv", ["ndkd"])
        (folder / "configs").symlink_to(REPOSITORY / "configs")
        (folder / "data").mkdir()
        (folder / "data" / "shapes").symlink_to(shapes)
        kwargs = json.dumps(SMALL)
        options = ["--config", "configs/shapes/kd++.yaml", "--trainer.max_epochs=1", *DRAWN]
        teacher = json.dumps({"name": "detector/resnet18", "checkpoint": str(teacher_file), "kwargs": SMALL})
        options += ["--model.init_args.teacher", teacher, "--model.init_args.student.kwargs", kwargs]
        status, out, err = ndkd("fit", *options)
        assert status == 0, err
        yield Path("runs/shapes/kd++"), out


@pytest.mark.parametrize(
    "options",
    [
        ["configs/shapes/teacher.yaml"],
        ["configs/shapes/student.yaml"],
        ["configs/shapes/reviewkd++.yaml"],
        ["configs/coco/r50_mv2/kd++.yaml", "configs/coco/overlays/dkd.yaml"],
        ["configs/coco/r101_r18/kd++.yaml", "configs/coco/overlays/alone.yaml"],
    ],
    ids=",".join,
)
def test_config_takes_a_step(run, teacher_file, options):
    student = {"kwargs": SMALL} | ({"pretrained": False} if "coco" in options[0] else {})
    teacher = {"name": "detector/resnet18", "checkpoint": str(teacher_file), "kwargs": SMALL}
    options = [part for config in options for part in ("--config", config)]
    options += ["--model.init_args.student", json.dumps(student), "--trainer.fast_dev_run=true", "--run_dir=dev"]
    if "teacher" not in options[1] and "student" not in options[1] and "alone" not in options[3]:
        options += ["--model.init_args.teacher", json.dumps(teacher)]
    files = [f"--data.init_args.{split}=data/shapes/annotations/instances_{split}.json" for split in ("train", "val")]
    data = [*files, "--data.init_args.num_workers=0"] if "coco" in options[1] else DRAWN
    status, _, err = ndkd("fit", *options, *data, "--data.init_args.batch_size=2")
    assert status == 0, err


def test_run_folder(run):
    folder, out = run
    assert "test AP: " in out
    rows = (folder / "metrics.csv").read_text().splitlines()
    columns = {"train/loss", "train/objectness", "train/kd", "train/nd", "val/ap", "val/ap50", "train/lr"}
    assert columns < set(rows[0].split(","))
    with Image.open(folder / "pictures" / "0000.png") as picture:
        pixels = np.asarray(picture)
        assert pixels.shape[1] == 3 * 488
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    results = json.loads((folder / "status.json").read_text())["results"]["last"]
    assert {f"test/ap/{name}" for name in ("circle", "square", "triangle", "star", "ring")} < results.keys()


def test_ap_is_that_of_the_predictions(run):
    folder, _ = run
    status, out, err = ndkd("predict", "--ckpt_path", folder / "checkpoints" / "last.ckpt")
    assert status == 0, err
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO("data/shapes/annotations/instances_val.json")
    evaluation = COCOeval(truth, truth.loadRes(str(folder / "predictions.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    results = json.loads((folder / "status.json").read_text())["results"]["last"]
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    for name, value in zip(names, evaluation.stats, strict=False):
        assert results[f"test/{name}"] == pytest.approx(value, abs=1e-6)
    rows = json.loads((folder / "predictions.json").read_text())
    assert {row["category_id"] for row in rows} <= {2, 3, 7, 40, 90}
    assert rows[0].keys() == {"image_id", "category_id", "bbox", "score"}


# ---- two processes ------------------------------------------------------------------------------------------------


class KeepMeans(L.Callback):
    """Writes each process's class means."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_start(self, trainer, pl_module):
        torch.save(pl_module.class_means, self.folder / f"means-{trainer.world_size}-{trainer.global_rank}.pt")


class KeepAP(L.Callback):
    """Writes what is logged after a validation."""

    def __init__(self, folder):
        self.folder = folder

    def on_validation_end(self, trainer, pl_module):
        values = {name: value.item() for name, value in trainer.callback_metrics.items()}
        file = self.folder / f"ap-{trainer.world_size}-{trainer.global_rank}.json"
        file.write_text(json.dumps(values))


TWO = {"devices": 2, "strategy": "ddp_fork"}


def test_two_processes_get_the_same_class_means(make, make_trainer, data, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    for options in ({}, TWO):
        L.seed_everything(0, verbose=False)
        callbacks = ClassMeans(), KeepMeans(tmp_path)
        trainer = make_trainer(*callbacks, limit_train_batches=1, limit_val_batches=0, **options)
        trainer.fit(make(terms(nd=LossTerm(NDLoss()))), datamodule=data)
    alone, first, second = (torch.load(tmp_path / f"means-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5)


class Shifted(DetectionDistillationModule):
    """Finds what is there, some of it not quite where it is, and some of it not at all."""

    def forward_pair(self, batch, teach=True):
        output = super().forward_pair(batch, teach)
        for found, target in zip(output.detections, output.target, strict=True):
            number, labels = int(target["image_id"]), target["labels"]
            kept = torch.arange(len(labels)) != number % 3
            shift = torch.arange(len(labels))[:, None] * number % 5
            scores = 1 / (1 + torch.arange(len(labels)) + number)
            found.update(boxes=(target["boxes"] + shift)[kept], labels=labels[kept], scores=scores[kept])
        return output


def test_two_processes_get_the_same_ap(make_trainer, data, tmp_path, monkeypatch):
    """Of five images, three for the one and two for the other."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    for options in ({}, TWO):
        trainer = make_trainer(KeepAP(tmp_path), **options)
        trainer.validate(Shifted(ModelConfig("detector/resnet18", kwargs=SMALL)), datamodule=data, verbose=False)
    one, two = (json.loads((tmp_path / f"ap-{name}.json").read_text()) for name in ("1-0", "2-0"))
    assert one == pytest.approx(two, abs=1e-6)
    assert 0.05 < one["val/ap"] < 0.95
