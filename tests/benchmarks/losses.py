"""ND loss, forward and backward, against the published form: a Python loop over the samples.

python tests/benchmarks/losses.py
"""

import torch
from torch.utils.benchmark import Timer

from ndkd.losses import nd_loss


def loop_over_samples(student, teacher, class_means, target):
    loss = 0
    for s, t, k in zip(student, teacher, target.tolist(), strict=True):
        direction = class_means[k] / class_means[k].norm()
        s_norm, t_norm = s.norm(), t.norm()
        norm = s_norm if s_norm.item() >= t_norm.item() else t_norm
        loss = loss + 1 - (s * direction).sum() / norm
    return loss / len(student)


def seconds(function, *arguments) -> float:
    statement = "student.grad = None; function(student, *rest).backward()"
    student, *rest = arguments
    timer = Timer(statement, globals={"function": function, "student": student, "rest": rest})
    return timer.blocked_autorange(min_run_time=1.0).median


def main() -> None:
    for size, wanted in ((64, 20), (512, 80)):
        torch.manual_seed(0)
        student, teacher = torch.randn(size, size, requires_grad=True), torch.randn(size, size)
        arguments = (student, teacher, torch.randn(100, size), torch.randint(100, (size,)))
        torch.testing.assert_close(nd_loss(*arguments), loop_over_samples(*arguments))
        ours, loop = [], []
        for _ in range(5):
            ours.append(seconds(nd_loss, *arguments))
            loop.append(seconds(loop_over_samples, *arguments))
        ratio = torch.tensor(loop).median() / torch.tensor(ours).median()
        print(f"ND loss ({size}, {size}): loop / ours = {ratio:.0f}x (wanted at least {wanted}x)")


if __name__ == "__main__":
    main()
