"""A training step as a CUDA graph: of a small model, telling a GPU of each kernel takes longer than the kernels do."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ndkd.data.base import PartlyLabeled
from ndkd.distillation.averages import values_of
from ndkd.errors import NdkdError
from ndkd.models.output import mapped, tensors_in

WARM_UP = 3  # calls that go the usual way, in which libraries choose and load their kernels
MOST = 8  # shapes of images for each of which the graph of a forward is kept


def check_graph(module: Any, has_own_steps: bool = False) -> None:
    """Raise ``NdkdError`` if a fit cannot replay its steps as a CUDA graph.

    Args:
        module: a ``ndkd.distillation.DistillationModule`` that is being fitted.
        has_own_steps: whether its class has a ``forward_pair`` of its own, which a graph would pass by.
    """
    trainer, why = module.trainer, None
    if trainer.strategy.root_device.type != "cuda":
        why = f"wants a GPU with CUDA, this fit runs on {trainer.strategy.root_device.type}; leave it out"
    elif not module.has_embeddings:
        why = "wants images of one size, a detector's have several; leave it out"
    elif has_own_steps:
        why = f"replays steps without the forward_pair that {type(module).__name__} has of its own; leave it out"
    elif trainer.world_size > 1:
        why = f"is for one GPU, this fit has {trainer.world_size} processes; set trainer.devices: 1, or leave it out"
    elif trainer.accumulate_grad_batches > 1:
        why = "makes a step of every batch, accumulate_grad_batches joins several; choose one of them"
    elif trainer.precision == "16-mixed":
        why = "cannot scale gradients as 16-mixed does; choose trainer.precision: bf16-mixed"
    elif any(getattr(source, "compile", None) == "reduce-overhead" for source in module.sources.values()):
        why = "takes the place of compile: reduce-overhead; choose one of them"
    if why:
        raise NdkdError(f"graph: {why}")


def captured(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """What a function returns, once its graph is replayed, and what replays it; what it reads must stay where it is."""
    torch.clear_autocast_cache()  # weights that were cast outside would be gone at the replay
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on
            result = function()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise NdkdError(f"graph: the step cannot be captured as a CUDA graph: {reason}; leave graph out") from error
    finally:
        torch.clear_autocast_cache()
    return result, graph.replay


def is_on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def signature(given: Any) -> list[Any]:
    """What tells whether a graph fits: kinds, shapes and types."""
    return [(tensor.shape, tensor.dtype, tensor.stride()) for tensor in tensors_in(given)]


def replaced(fixed: Any, given: Any) -> None:
    """Put new values where a graph reads them."""
    for place, tensor in zip(tensors_in(fixed), tensors_in(given), strict=True):
        place.copy_(tensor, non_blocking=True)


class GraphedForward:
    """A model's call on images alone, replayed wherever no gradients are asked for.

    Args:
        model: on a GPU, or on its way there.
        call: of the model.
    """

    def __init__(self, model: nn.Module, call: Callable[..., Any]):
        self.model, self.call = model, call
        self.seen: dict[Any, int] = {}
        self.graphs: dict[Any, tuple[Tensor, Any, Callable[[], None]]] = {}

    def __call__(self, images: Tensor) -> Any:
        if torch.is_grad_enabled() or not is_on_gpu(images):
            return self.call(images)
        modes = self.model.training, torch.is_inference_mode_enabled(), torch.is_autocast_enabled()
        key = images.shape, images.dtype, images.stride(), modes
        if key not in self.graphs:
            self.seen[key] = self.seen.get(key, 0) + 1
            if self.seen[key] <= WARM_UP or len(self.graphs) == MOST:
                return self.call(images)
            fixed = images.clone()
            self.graphs[key] = fixed, *captured(lambda: self.call(fixed))
        fixed, output, replay = self.graphs[key]
        fixed.copy_(images)
        replay()
        return mapped(torch.clone, output)  # the next replay writes there

    def forget(self) -> None:
        """Capture again: the weights are elsewhere."""
        self.seen, self.graphs = {}, {}


def graph_forward(model: nn.Module) -> None:
    """Replay a model's calls without gradients as CUDA graphs, compiled or not."""
    model._compiled_call_impl = GraphedForward(model, _call_of(model) or model._call_impl)  # as Module.compile does


def forget_graphs(model: nn.Module) -> None:
    """Capture again what a model or a part of it replays: it was moved."""
    for part in model.modules():
        if isinstance(call := _call_of(part), GraphedForward):
            call.forget()


def _call_of(model: nn.Module) -> Any:
    return getattr(model, "_compiled_call_impl", None)


class GraphedStep:
    """The student's part of a training step, forward, losses and backward, captured once and replayed.

    The teacher's part is its own: it may be read from a recording. The first steps of a fit, batches of another size
    than the first one's, and such with unlabelled images go the usual way.

    Args:
        module: a ``ndkd.distillation.DistillationModule`` in fit.
    """

    def __init__(self, module: Any):
        self.module, self.calls = module, 0
        self.usual: Any = None  # the signature of the first batch
        self.key: Any = None
        self.epoch = -1

    def __call__(self, batch: Any) -> Tensor | None:
        """The objective of a batch, its gradients ready for ``backward``; None for a step that goes the usual way."""
        module = self.module
        if isinstance(batch, PartlyLabeled):
            return None
        images, target = module.read(batch)
        self.usual = self.usual or signature([images, target])
        self.calls += 1
        if self.calls <= WARM_UP or signature([images, target]) != self.usual:
            return None
        given = [images, target, module.teach(images)]
        key = [type(given[2]), *signature(given), *(each.requires_grad for each in module.parameters())]
        if key == self.key:
            replaced(self.fixed, given)
        else:
            self._capture(given)
            self.key = key
        if self.epoch != module.current_epoch:
            self.epoch = module.current_epoch
            for name, factor in module.objective.factors(self.epoch).items():
                self.factors[name].fill_(factor)
        self.replay()
        module.averages.add(self.row)
        return self.total

    def backward(self) -> None:
        """Give the parameters the gradients of the last replay."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def _capture(self, given: list[Any]) -> None:
        self.fixed = mapped(torch.clone, given)
        self.factors = {name: torch.zeros((), device=given[0].device) for name in self.module.objective.terms}
        self.epoch = -1
        self.parameters = [each for each in self.module.parameters() if each.requires_grad]
        for parameter in self.parameters:
            parameter.grad = None  # or gradients would be added to the last ones
        (self.total, self.row), self.replay = captured(self._step)
        self.gradients = [parameter.grad for parameter in self.parameters]

    def _step(self) -> tuple[Tensor, Tensor]:
        images, target, teacher = self.fixed
        output = self.module.learn(images, target, teacher)
        total, values = self.module.objective(output, factors=self.factors)
        with torch.autocast(total.device.type, enabled=False):
            total.backward()
        return total.detach(), values_of(total, list(values.values()), teacher)
