"""Arithmetic of the class means against the teacher's forward pass that feeds it.

python benchmarks/class_means.py
"""

import torch
from torch.utils.benchmark import Timer

from ndkd.models import FeatureExtractor, build_model


def main() -> None:
    torch.manual_seed(0)
    teacher = FeatureExtractor(build_model("cifar/resnet20", 10)).eval()
    images, label = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
    sums, counts = torch.zeros(10, teacher.embedding_dim, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)

    def add(embedding):
        sums.index_add_(0, label, embedding.double())
        counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))

    with torch.no_grad():
        embedding = teacher(images).embedding
        forward, arithmetic = [], []
        for _ in range(5):
            names = {"teacher": teacher, "images": images, "add": add, "embedding": embedding}
            forward.append(Timer("teacher(images)", globals=names).blocked_autorange(min_run_time=1.0).median)
            arithmetic.append(Timer("add(embedding)", globals=names).blocked_autorange(min_run_time=0.5).median)
    share = torch.tensor(arithmetic).median() / torch.tensor(forward).median()
    print(f"class means, 64 images, resnet20: arithmetic / forward = {share:.2%} (wanted under 0.5%)")


if __name__ == "__main__":
    main()
