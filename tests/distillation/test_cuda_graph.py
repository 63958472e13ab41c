"""Steps that are replayed, with a stand-in for the capture; ``tests/gpu`` has real ones."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from ndkd.callbacks import ClassMeans, Freezing, TeacherCache, TermGradients
from ndkd.data import DigitsDataModule
from ndkd.distillation import DistillationModule, cuda_graph
from ndkd.distillation.cuda_graph import GraphedForward, check_graph, forget_graphs, graph_forward
from ndkd.errors import NdkdError
from ndkd.models import FeatureExtractor, ModelConfig, build_model
from ndkd.models.output import mapped, tensors_in
from tests.tiny_data import TinyWithUnlabeled


class StandIn:
    """A graph without CUDA: a replay calls the function again and writes its results where the first ones are.

    As in a capture, nothing has happened before the first replay: buffers and random numbers are as they were.
    """

    def __init__(self):
        self.captures, self.replays = 0, 0
        self.watched: list[torch.nn.Module] = []

    def __call__(self, function):
        self.captures += 1
        buffers = [buffer for model in self.watched for buffer in model.buffers()]
        before = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng(devices=[]):
            result = function()
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        parameters = [p for model in self.watched for p in model.parameters() if p.grad is not None]
        places = [*tensors_in(result), *(p.grad for p in parameters)]
        takes_gradients = torch.is_grad_enabled()

        def replay():
            self.replays += 1
            for parameter in parameters if takes_gradients else ():
                parameter.grad = None
            values = tensors_in(function())
            values += [p.grad for p in parameters] if takes_gradients else places[len(values) :]
            for place, value in zip(places, values, strict=True):
                place.copy_(value)

        return result, replay


@pytest.fixture
def graphs(monkeypatch):
    """Captures on a CPU, counted."""
    stand_in = StandIn()
    monkeypatch.setattr(cuda_graph, "captured", stand_in)
    monkeypatch.setattr(cuda_graph, "is_on_gpu", lambda tensor: True)
    monkeypatch.setattr("ndkd.distillation.module.check_graph", lambda module, own: stand_in.watched.append(module))
    return stand_in


@pytest.fixture
def digits():
    """Four batches of 32 and one of 22 in an epoch."""
    return partial(DigitsDataModule, train_size=150, batch_size=32)


def assert_same(modules):
    one, other = (module.student.state_dict() for module in modules)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("names", [("ce",), ("ce", "kd", "nd"), ("ce", "review")])
def test_replayed_steps_give_the_same_weights(fit, make_module, terms, digits, graphs, names):
    modules = [make_module(terms(*names), narrow=True, graph=graph) for graph in (False, True)]
    figures = [fit(module, data=digits(), epochs=3).callback_metrics for module in modules]
    assert_same(modules)
    assert figures[0].keys() == figures[1].keys()
    assert all(torch.equal(figures[0][name], figures[1][name]) for name in figures[0])
    assert graphs.replays > 8


def test_a_graph_follows_the_warm_up_of_a_weight(fit, make_module, terms, digits, graphs):
    modules = []
    for graph in (False, True):
        losses = terms("ce", "kd")
        losses["kd"].warmup_epochs = 3
        modules.append(make_module(losses, graph=graph))
        fit(modules[-1], data=digits(), epochs=4)
    assert_same(modules)


def test_a_recording_is_written_and_read_by_replayed_steps(fit, make_module, terms, digits, graphs, tmp_path):
    modules = [make_module(terms("ce", "kd", "nd"), graph=graph) for graph in (False, True, True)]
    for module, folder in zip(modules, (None, tmp_path, tmp_path), strict=True):
        fit(module, *([TeacherCache(folder)] if folder else []), data=digits(), epochs=3)
    assert_same(modules[:2])
    assert_same(modules[1:])
    assert not modules[2].teacher.is_asked


def test_a_recording_that_ends_early_is_gone_on_with(fit, make_module, terms, digits, graphs, tmp_path):
    modules = [make_module(terms("ce", "kd", "nd"), graph=graph) for graph in (True, True, False)]
    for module, epochs in zip(modules, (2, 4, 4), strict=True):
        fit(module, TeacherCache(tmp_path), data=digits(), epochs=epochs)
    assert_same(modules[1:])


def test_parts_that_learn_later_are_captured_then(fit, make_module, terms, digits, graphs):
    modules = [make_module(terms("ce", "kd"), graph=graph) for graph in (False, True)]
    for module in modules:
        fit(module, Freezing(["layer1", "layer2"], until_epoch=2), data=digits(), epochs=4)
    assert_same(modules)


def test_averages_of_weights(fit, make_module, terms, digits, graphs):
    modules = [make_module(terms("ce"), graph=graph) for graph in (False, True)]
    figures = [fit(m, EMAWeightAveraging(decay=0.9), data=digits(), epochs=3).callback_metrics for m in modules]
    assert torch.equal(*(each["val/cross_entropy"] for each in figures))


def test_a_fit_after_a_fit(fit, make_module, terms, digits, graphs):
    """The module is copied for its averages, and a graph cannot be."""
    module = make_module(terms("ce"), graph=True)
    for epochs in (2, 3):
        fit(module, EMAWeightAveraging(decay=0.9), data=digits(), epochs=epochs)
        assert module.graphed_step is None


def test_images_without_labels_go_the_usual_way(fit, make_module, terms, graphs):
    modules = [make_module(terms("ce", "kd"), graph=graph) for graph in (False, True)]
    for module in modules:
        fit(module, data=TinyWithUnlabeled(), epochs=3)
    assert_same(modules)


def test_gradients_of_terms_are_not_to_be_had(fit, make_module, terms, digits, graphs, capsys):
    fit(make_module(terms("ce", "kd"), graph=True), TermGradients(1), data=digits(), epochs=2)
    line = "ndkd: no gradients of the loss terms: a graph replays a step as a whole\n"
    assert capsys.readouterr().out.count(line) == 1


# ---- a model's own calls ------------------------------------------------------------------------------------------


@pytest.fixture
def model(graphs):
    model = FeatureExtractor(build_model("cifar/resnet8", 10)).eval()
    graphs.watched.append(model)
    graph_forward(model)
    return model


@torch.no_grad()
def test_a_call_is_captured_once_its_shape_is_known(model, graphs):
    plain = FeatureExtractor(build_model("cifar/resnet8", 10)).eval()
    plain.load_state_dict(model.state_dict())
    kept = []
    for size in (4, 4, 4, 4, 2, 4):
        images = torch.rand(size, 3, 8, 8)
        kept.append((model(images), plain(images)))
    assert (graphs.captures, graphs.replays) == (1, 2)
    for found, wanted in kept:  # a later replay has not written over an earlier answer
        assert torch.equal(found.logits, wanted.logits)
        assert torch.equal(found.embedding, wanted.embedding)


def test_a_call_for_gradients_is_not_replayed(model, graphs):
    for _ in range(5):
        model(torch.rand(2, 3, 8, 8)).logits.sum().backward()
    assert graphs.captures == 0


@torch.no_grad()
def test_modes_have_graphs_of_their_own(model, graphs):
    images = torch.rand(2, 3, 8, 8)
    for training in (False, True):
        model.train(training)
        for _ in range(4):
            model(images)
    with torch.inference_mode():
        for _ in range(4):
            model(images)
    assert graphs.captures == 3


@torch.no_grad()
def test_not_every_shape_is_kept(model, graphs):
    for size in range(1, 12):
        for _ in range(4):
            model(torch.rand(size, 3, 8, 8))
    assert graphs.captures == cuda_graph.MOST


@torch.no_grad()
def test_what_was_moved_is_captured_again(model, graphs):
    images = torch.rand(2, 3, 8, 8)
    for _ in range(4):
        model(images)
    forget_graphs(torch.nn.ModuleList([model]))
    model.to(torch.float64)
    for _ in range(4):
        found = model(images.double())
    assert graphs.captures == 2
    assert found.logits.dtype == torch.float64


def test_a_module_that_is_moved_forgets_the_graphs_of_student_and_teacher(fit, make_module, terms, digits, graphs):
    module = make_module(terms("ce", "kd"), graph=True)
    fit(module, ClassMeans(), data=digits(), epochs=3)
    calls = [module.student._compiled_call_impl, module.teacher._compiled_call_impl]
    assert all(isinstance(call, GraphedForward) for call in calls)
    module.double()
    assert [call.graphs for call in calls] == [{}, {}]


# ---- what cannot be replayed ----------------------------------------------------------------------------------------


def test_no_gpu(fit, make_module, terms, digits):
    with pytest.raises(NdkdError, match="^graph: wants a GPU with CUDA, this fit runs on cpu; leave it out$"):
        fit(make_module(terms("ce"), graph=True), data=digits())


def fitted(**options):
    """What is asked of a module and its trainer."""
    model = ModelConfig("cifar/resnet8", compile=options.pop("compile", None))
    device = SimpleNamespace(root_device=torch.device("cuda"))
    trainer = {"strategy": device, "world_size": 1, "accumulate_grad_batches": 1, "precision": "32-true"} | options
    has_embeddings = trainer.pop("has_embeddings", True)
    return SimpleNamespace(
        trainer=SimpleNamespace(**trainer), has_embeddings=has_embeddings, sources={"student": model, "teacher": None}
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 2}, "is for one GPU, this fit has 2 processes; set trainer.devices: 1, or leave it out"),
        (
            {"accumulate_grad_batches": 4},
            "makes a step of every batch, accumulate_grad_batches joins several; choose one of them",
        ),
        ({"precision": "16-mixed"}, "cannot scale gradients as 16-mixed does; choose trainer.precision: bf16-mixed"),
        ({"has_embeddings": False}, "wants images of one size, a detector's have several; leave it out"),
        ({"compile": "reduce-overhead"}, "takes the place of compile: reduce-overhead; choose one of them"),
    ],
)
def test_what_a_graph_cannot_do(options, message):
    check_graph(fitted())
    check_graph(fitted(compile="default"))
    with pytest.raises(NdkdError, match=f"^graph: {message}$"):
        check_graph(fitted(**options))


def test_a_step_of_ones_own(fit, make_module, terms, digits, monkeypatch):
    class Own(DistillationModule):
        def forward_pair(self, batch, teach=True):
            return super().forward_pair(batch, teach)

    asked = []
    monkeypatch.setattr("ndkd.distillation.module.check_graph", lambda module, own: asked.append(own))
    for kind in (DistillationModule, Own):
        module = kind(ModelConfig("cifar/resnet8"), terms("ce"), num_classes=10, graph=True)
        fit(module, data=digits(), max_steps=1)
    assert asked == [False, True]
    message = "^graph: replays steps without the forward_pair that SimpleNamespace has of its own; leave it out$"
    with pytest.raises(NdkdError, match=message):
        check_graph(fitted(), has_own_steps=True)


def test_what_cannot_be_captured(monkeypatch):
    class Refusing:
        def __init__(self, graph, capture_error_mode):
            assert capture_error_mode == "thread_local"

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=None))
    monkeypatch.setattr(torch.cuda, "graph", Refusing)

    def waits():
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    message = (
        "^graph: the step cannot be captured as a CUDA graph: operation not permitted when stream is capturing; leave "
        "graph out$"
    )
    with pytest.raises(NdkdError, match=message):
        cuda_graph.captured(waits)


def test_mapped_keeps_the_kind_of_an_output():
    output = SimpleNamespace(logits=torch.ones(2), maps=[torch.zeros(1)], extra=None)
    doubled = mapped(lambda tensor: 2 * tensor, output)
    assert doubled.logits.tolist() == [2, 2]
    assert doubled.extra is None
    assert [len(tensor) for tensor in tensors_in(output)] == [2, 1]
