"""Images in a GPU's memory are augmented as those of the CPU."""

import pytest
import torch

from ndkd.data.in_memory_loader import InMemoryLoader
from ndkd.data.samplers import ShardedOrder
from tests.data.test_in_memory import IMAGES, TARGET


@pytest.mark.parametrize(("pad", "flip", "shuffle"), [(0, False, False), (2, True, True), (4, False, True)])
def test_pixels_are_those_of_the_cpu(device, pad, flip, shuffle):
    found = {}
    for place in ("cpu", device):
        order = ShardedOrder(len(IMAGES), shuffle, 0, 0, 1)
        order.set_epoch(3)
        batches = list(InMemoryLoader(IMAGES, TARGET, 8, order, pad, flip, place))
        assert all(images.device.type == target.device.type == torch.device(place).type for images, target in batches)
        found[place] = [(images.cpu(), target.cpu()) for images, target in batches]
    for (one, target), (other, same) in zip(*found.values(), strict=True):
        assert torch.equal(target, same)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
