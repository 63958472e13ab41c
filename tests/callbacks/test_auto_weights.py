"""Weights that are given as shares."""

import pytest
import torch
from torch import nn

from ndkd.callbacks import AutoWeights, ClassMeans, RunRecorder, TeacherCache, auto_weights, checkpoint_callbacks
from ndkd.distillation.objective import LossTerm, Objective
from ndkd.distillation.proxy_run import measure_terms
from ndkd.runs import Run
from tests.command import refusal
from tests.distillation.watching import assert_equal, copied, same, unbroken_and_resumed


@pytest.fixture
def auto(make_module, terms):
    """A module whose ND loss is to have a share."""

    def make(share=0.2, **options):
        return make_module(terms("ce", "kd", nd={"auto": share}), **options)

    return make


class Frozen(nn.Module):
    """A loss that teaches nothing."""

    inputs = ("student.logits",)

    def forward(self, logits):
        return logits.detach().mean()


def test_a_weight_gives_the_share_after_the_copys_steps(fit, auto, monkeypatch):
    measured = []
    monkeypatch.setattr(
        auto_weights, "measure_terms", lambda *given: measured.append(measure_terms(*given)) or measured[0]
    )
    module = auto(narrow=True)
    fit(module, AutoWeights(), limit_val_batches=0)
    (found,) = measured
    assert module.objective.terms["nd"].weight == found.weights["nd"] > 0
    assert found.shares(found.later)["nd"] == pytest.approx(0.2, abs=2e-3)
    assert found.weights["ce"] == found.weights["kd"] == 1
    assert found.start["ce"].cosine_to_ce == pytest.approx(1)
    assert found.start != found.later
    assert module.losses["nd"].weight == {"auto": 0.2}  # the caller's
    assert str(module.objective) == f"1·ce + 1·kd + {found.weights['nd']:g}·nd (share 0.2)"


def test_the_number_repeats_the_run(fit, auto, make_module, terms):
    """Bit for bit, given as a number in another run: measuring leaves no trace but the weight."""
    module = auto()
    fit(module, AutoWeights(), epochs=2)
    number = module.objective.terms["nd"].weight
    other = make_module(terms("ce", "kd", nd=float(f"{number:g}")))
    fit(other, epochs=2)
    assert_equal(copied(module.student), copied(other.student))


def test_a_resumed_run_keeps_it_and_measures_nothing(fit, auto, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(auto_weights, "measure_terms", lambda *given: calls.append(1) or measure_terms(*given))
    contents = unbroken_and_resumed(fit, auto, tmp_path, callbacks=lambda: [AutoWeights()], epochs=3, breaks=1)
    assert len(calls) == 2  # of three starts
    assert same(contents[0]["state_dict"], contents[1]["state_dict"])
    (weight,) = {content["callbacks"]["AutoWeights"]["nd"] for content in contents}
    assert Run(tmp_path / "broken").status()["weights"] == {"ce": 1.0, "kd": 1.0, "nd": weight}


def test_a_recording_of_the_teacher_is_not_in_its_way(fit, auto, tmp_path):
    weights = []
    for _ in range(2):
        module = auto()
        fit(module, TeacherCache(tmp_path / "cache"), ClassMeans(), AutoWeights())
        weights.append(module.objective.terms["nd"].weight)
    assert weights[0] == weights[1]


def test_without_the_callback_it_is_not_known(fit, auto):
    assert refusal(fit, auto()) == (
        "weight: auto is not known yet: give the trainer callbacks=[ClassMeans(), AutoWeights()]"
    )


def test_a_term_that_teaches_nothing_has_no_share(fit, make_module, terms):
    losses = terms("ce") | {"silent": LossTerm(Frozen(), {"auto": 0.2})}
    assert "silent has no gradient on the student" in refusal(fit, make_module(losses), AutoWeights())


@pytest.mark.parametrize(
    "weight",
    ["auto", {"auto": 0}, {"auto": 1}, {"auto": "0.2"}, {"auto": True}, {"auto": float("nan")}, {"share": 0.2}, {}],
)
def test_weights_that_are_none(weight):
    assert refusal(LossTerm, nn.L1Loss(), weight).startswith("weight: ")


def test_terms_that_are_all_shares(terms):
    assert "are all terms" in refusal(Objective, terms(kd={"auto": 0.2}, nd={"auto": 0.2}))
    assert "wanted less than 1 in all" in refusal(Objective, terms("ce", kd={"auto": 0.5}, nd={"auto": 0.6}))


def test_class_weights_are_still_said_beside_the_weight():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))
    term = LossTerm(loss, 0.5, inputs=["student.logits", "target"], class_weights=[1.0, 2.0])
    assert str(Objective({"ce": term})) == "0.5·ce (class weights 1 to 2)"


def test_it_is_kept_where_a_run_is_recorded(fit, auto, tmp_path):
    run, module = Run(tmp_path / "run"), auto()
    fit(module, ClassMeans(), AutoWeights(), RunRecorder(run, "{}"), *checkpoint_callbacks(run))
    assert run.status()["weights"]["nd"] == module.objective.terms["nd"].weight
