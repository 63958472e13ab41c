"""ND loss, forward and backward, against the published form: a loop over the samples, class means in lists by name.

python benchmarks/losses.py
"""

import statistics

import torch
from torch.utils.benchmark import Timer

from ndkd.losses import nd_loss


def loop_over_samples(student, teacher, class_means, target):
    loss = 0.0
    for s, t, k in zip(student, teacher, target, strict=True):
        mean = torch.tensor(class_means[str(k.item())], device=s.device)
        loss = loss + 1 - torch.dot(s, mean / mean.norm()) / max(s.norm(), t.norm())
    return loss / len(student)


def seconds(function, *arguments) -> float:
    statement = "student.grad = None; function(student, *rest).backward()"
    student, *rest = arguments
    names = {"function": function, "student": student, "rest": rest}
    timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=1.0).median


def main() -> None:
    for size, wanted in ((64, 20), (512, 80)):
        torch.manual_seed(0)
        student, teacher = torch.randn(size, size, requires_grad=True), torch.randn(size, size)
        class_means, target = torch.randn(100, size), torch.randint(100, (size,))
        lists = {str(k): row for k, row in enumerate(class_means.tolist())}
        torch.testing.assert_close(
            nd_loss(student, teacher, class_means, target), loop_over_samples(student, teacher, lists, target)
        )
        pairs = [
            (
                seconds(loop_over_samples, student, teacher, lists, target),
                seconds(nd_loss, student, teacher, class_means, target),
            )
            for _ in range(7)
        ]
        ratios = [loop / ours for loop, ours in pairs]
        print(
            f"ND loss ({size}, {size}): loop / ours = {statistics.median(ratios):.0f}x, "
            f"from {min(ratios):.0f}x to {max(ratios):.0f}x (wanted at least {wanted}x)"
        )


if __name__ == "__main__":
    main()
