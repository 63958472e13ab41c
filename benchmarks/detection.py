"""A distillation step of a detector against the student's own step and the teacher's share of it, done apart.

Both sides see the same images in the same run, in turn: ours is forward, losses and backward of the module with KD and
ND; theirs are torchvision's training forward and backward of the student, and the teacher's backbone and box branch on
regions that are kept from before.

    python benchmarks/detection.py [--pairs 7] [--size 320] [--batch 2]
"""

import argparse
import statistics
import time

import torch
from torch import nn

from ndkd.distillation.detection import DetectionDistillationModule, box_branch
from ndkd.distillation.objective import LossTerm
from ndkd.losses import KDLoss, NDLoss
from ndkd.models import FeatureExtractor, build_model
from ndkd.models.teacher import freeze

LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"pairs": 7, "size": 320, "batch": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    sizes = {"min_size": options.size, "max_size": options.size}
    student, teacher = (build_model(f"detector/{name}", 6, **sizes) for name in ("resnet18", "resnet50"))
    losses = {name: LossTerm(nn.Identity(), inputs=[f"student.extra.{name}"]) for name in LOSSES}
    losses |= {"kd": LossTerm(KDLoss(1.0)), "nd": LossTerm(NDLoss())}
    module = DetectionDistillationModule(FeatureExtractor(student), losses, FeatureExtractor(freeze(teacher)))
    module.student, module.teacher = module.sources["student"], module.sources["teacher"]
    module.class_means = torch.randn(6, 1024)
    for term in losses.values():
        term.inputs = term.inputs or list(term.loss.inputs)
    module.train()
    images = [torch.rand(3, options.size, options.size) for _ in range(options.batch)]
    boxes = torch.tensor([[20.0, 20, 120, 160], [100, 90, 260, 240]]) * options.size / 320
    batch = images, [{"boxes": boxes, "labels": torch.tensor([1, 3])} for _ in images]
    with torch.no_grad():
        scaled, targets = student.transform(*batch)
        proposals, _ = student.rpn(scaled, student.backbone(scaled.tensors), targets)
        regions = student.roi_heads.select_training_samples(proposals, targets)[0]

    def ours():
        output = module.forward_pair(batch)
        sum(module._value(name, term, output) for name, term in losses.items()).backward()

    def theirs():
        sum(student(*batch).values()).backward()
        with torch.no_grad():
            box_branch(teacher, teacher.backbone(scaled.tensors), regions, scaled.image_sizes)

    ratios = []
    for pair in range(options.pairs + 1):
        times = {}
        for step in (ours, theirs) if pair % 2 else (theirs, ours):
            started = time.perf_counter()
            step()
            times[step] = time.perf_counter() - started
            student.zero_grad()
        if pair:  # the first warms up
            ratios.append(times[ours] / times[theirs])
    print(
        f"a step takes {statistics.median(ratios):.3f} times the parts, from {min(ratios):.3f} to {max(ratios):.3f} "
        f"({times[ours]:.2f} s against {times[theirs]:.2f} s)"
    )


if __name__ == "__main__":
    main()
