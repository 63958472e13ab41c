"""The page's commands for the paper's COCO table are the published recipes."""

import sys

import pytest

from tests.command import REPOSITORY
from tests.configs.recipes import resolved, rows

ROWS = rows("detection", "COCO")
# teacher_student: their names; weights of kd and nd; of reviewkd and nd in "++"; of reviewkd alone
PAIRS = {
    "r101_r18": ("resnet101", "resnet18", (1, 1.5), (1.2, 1.5), 1.2),
    "r101_r50": ("resnet101", "resnet50", (1, 1), (1.4, 1), 1.0),
    "r50_mv2": ("resnet50", "mobilenet_v2", (1, 1), (2.2, 1.5), 2.0),
}
SIZES = {"min_size": [640, 672, 704, 736, 768, 800], "max_size": 1333}


def wanted_terms(row, pair):
    """Class, arguments that matter and weight of the terms; a detector's own need no entry."""
    _, _, (kd, nd), (reviewpp, reviewpp_nd), review = PAIRS[pair]
    middle = {"max_mid_channels": 256}
    terms = {
        "KD": {"kd": ("KDLoss", {"temperature": 1}, kd)},
        "KD++": {"kd": ("KDLoss", {"temperature": 1}, kd), "nd": ("NDLoss", {}, nd)},
        "DKD": {"dkd": ("DKDLoss", {"alpha": 1, "beta": 0.25, "temperature": 1}, 1)},
        "ReviewKD": {"reviewkd": ("ReviewKDLoss", middle, review)},
        "ReviewKD++": {"reviewkd": ("ReviewKDLoss", middle, reviewpp), "nd": ("NDLoss", {}, reviewpp_nd)},
    }
    return terms.get(row, {})


@pytest.mark.parametrize("pair", PAIRS)
def test_rows_are_the_published_recipe(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ndkd"])
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    commands = {row: command for (of_pair, row), command in ROWS.items() if of_pair == pair}
    assert len(commands) == 7
    teacher, student, *_ = PAIRS[pair]
    for row, command in commands.items():
        config = resolved(command)
        model = config["model"]["init_args"]
        alone = row in ("teacher alone", "student alone")
        built = teacher if row == "teacher alone" else student
        assert (model["student"]["name"], model["student"]["pretrained"]) == (f"detector/{built}", True)
        assert model["student"]["kwargs"] == SIZES
        assert (model["teacher"] is None) == alone
        if not alone:
            assert model["teacher"]["name"] == f"detector/{teacher}"
            assert model["teacher"]["kwargs"] == SIZES
            run = f"runs/coco/teachers/{teacher.replace('resnet', 'r')}"
            assert model["teacher"]["checkpoint"] == f"{run}/checkpoints/last.ckpt"
        terms = {name: term for name, term in (model["losses"] or {}).items() if term["weight"]}
        found = {
            name: (
                term["loss"]["class_path"].split(".")[-1],
                {
                    key: value
                    for key, value in term["loss"].get("init_args", {}).items()
                    if key != "eps" and value is not False
                },
                term["weight"],
            )
            for name, term in terms.items()
        }
        assert found == wanted_terms(row, pair), row
        assert all(term["warmup_epochs"] == 0 for term in terms.values())
        optimizer, schedule = model["optimizer"]["init_args"], model["lr_scheduler"]["init_args"]
        assert [optimizer[key] for key in ("lr", "momentum", "weight_decay", "nesterov")] == [0.01, 0.9, 1e-4, False]
        assert schedule == {"milestones": [120000, 160000], "warmup_steps": 1000, "warmup_factor": 0.001, "gamma": 0.1}
        assert (model["lr_interval"], config["trainer"]["max_steps"]) == ("step", 180000)
        assert (config["data"]["class_path"], config["data"]["init_args"]["batch_size"]) == (
            "ndkd.data.CocoDataModule",
            8,
        )
