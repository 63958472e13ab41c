"""What the tests of a module look at it with."""

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ndkd.callbacks import RunRecorder, checkpoint_callbacks
from ndkd.runs import Run


class Watch(L.Callback):
    """Keeps student and teacher at the start, and batch, modes, loss and gradients of every step."""

    def on_train_start(self, trainer, pl_module):
        self.start = copied(pl_module.student)
        self.teacher = pl_module.teacher and copied(pl_module.teacher)
        self.batches, self.modes, self.losses, self.gradients = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch)
        teacher = pl_module.teacher
        self.modes.append((is_training(pl_module.student), teacher is not None and is_training(teacher)))

    def on_after_backward(self, trainer, pl_module):
        self.gradients.append([p.grad.clone() for p in pl_module.student.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])


class Spoiled(nn.Module):
    """A loss whose value and gradient are not finite from one step on."""

    inputs = ("student.logits",)

    def __init__(self, step, value):
        super().__init__()
        self.step, self.value, self.calls = step, value, 0

    def forward(self, logits):
        self.calls += self.training
        return logits.square().mean() * (self.value if self.calls > self.step else 1.0)


class Viewing(nn.Module):
    """A classifier that flattens its maps with ``view``."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 10)

    def forward(self, images):
        return self.fc(self.conv(images).view(len(images), -1))


class Small(nn.Module):
    """A student that compiles in a moment."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, num_classes)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


def is_training(module):
    """Whether all parts are in train mode; None where they differ."""
    modes = {part.training for part in module.modules()}
    return modes.pop() if len(modes) == 1 else None


def copied(module):
    """The state of a module, which training then leaves alone."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def foreign_loader(size=20, shuffle=False):
    random = torch.Generator().manual_seed(0)
    images, target = torch.rand(size, 3, 8, 8, generator=random), torch.arange(size) % 10
    return DataLoader(TensorDataset(images, target), batch_size=8, shuffle=shuffle)


class Break(L.Callback):
    """Ctrl-C at the start of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def unbroken_and_resumed(fit, make, folder, callbacks=list, epochs=4, breaks=2, **options):
    """The last checkpoint of an unbroken run, and of one that was broken off in an epoch and went on."""
    contents = []
    for name, places in (("unbroken", []), ("broken", [breaks])):
        run = Run(folder / name)

        def kept(run=run):
            return *callbacks(), RunRecorder(run, "{}"), *checkpoint_callbacks(run)

        for epoch in places:
            with pytest.raises(SystemExit):
                fit(make(), Break(epoch), *kept(), epochs=epochs, **options)
        last = run.checkpoint("last") if places else None
        fit(make(), *kept(), epochs=epochs, ckpt_path=last, **options)
        contents.append(torch.load(run.checkpoint("last"), weights_only=True))
    return contents


def same(left, right):
    """Whether the contents of two checkpoints agree, bit for bit."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
