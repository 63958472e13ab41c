"""The ledger of published figures, and the key that a configuration has."""

import re

import pytest
import yaml

from ndkd.configuration.arguments import with_found_configs
from ndkd.configuration.published import FILE, check_key, ledger, with_published
from tests.command import REPOSITORY, ndkd, refusal

R56 = "cifar100/r56_r20"
METHODS = {"teacher", "student", "kd", "dkd", "dist", "reviewkd", "kd++", "dkd++", "dist++", "reviewkd++"}


def key_of(*configs, option=()):
    """The key that holds after these configurations."""
    given = with_found_configs([word for config in configs for word in ("--config", config)])
    found = [word for word in with_published(["fit", *given, *option]) if word.startswith("--published")]
    assert len(found) <= 1
    return found[0].partition("=")[2] if found else None


# ---- the ledger -----------------------------------------------------------------------------------------------------


def test_keys_are_benchmark_pair_and_method():
    assert all(re.fullmatch(r"(cifar100|imagenet)/[a-z0-9_]+/[a-z0-9+]+", key) for key in ledger())
    pairs = {key.split("/")[1] for key in ledger() if key.startswith("cifar100")}
    assert len(pairs) == 6
    for pair in pairs:
        assert {key.rpartition("/")[2] for key in ledger() if f"/{pair}/" in key} >= METHODS


def test_a_figure_says_whose_it_is_and_where_it_stands():
    for figures in ledger().values():
        assert len({(figure.whose, figure.source) for figure in figures}) == len(figures)
        for figure in figures:
            assert figure.whose in ("original", "copy", "users") or figure.accuracy is None
            assert figure.source or figure.accuracy is None
            assert figure.accuracy is None or 60 < figure.accuracy < 90
            assert figure.epoch in ("", "best", "last")


def test_copies_and_originals_stand_side_by_side():
    copy, original = ledger()["cifar100/r32x4_r8x4/dist"]
    assert (copy.accuracy, copy.whose, copy.source) == (75.79, "copy", "arXiv 2305.17007")
    assert (original.accuracy, original.whose, original.source) == (76.31, "original", "README of DIST's authors")


def test_what_a_source_does_not_say_is_empty():
    (figure,) = ledger()[f"{R56}/kd++"]
    assert (figure.batch_size, figure.lr, figure.epochs) == (128, 0.1, 240)
    assert (figure.epoch, figure.runs, figure.table) == ("", None, "")


def test_its_file_is_rows_of_equal_length():
    lengths = {len(line.split(",")) for line in FILE.read_text().splitlines()}
    assert lengths == {10}


# ---- the key --------------------------------------------------------------------------------------------------------


def shipped():
    """Names of shipped configurations with the keys that they have."""
    files = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    keys = {
        file.relative_to(REPOSITORY / "configs"): yaml.safe_load(file.read_text()).get("published") for file in files
    }
    return {name: key for name, key in keys.items() if key}


def test_shipped_configurations_of_a_pair_name_their_own_row():
    named = {name.as_posix().replace("overlays/", "").removesuffix(".yaml"): key for name, key in shipped().items()}
    assert named.pop("cifar_wrn") == "cifar100/wrn402_wrn401/kd++"  # older than the folders
    of_pairs = {name: key for name, key in named.items() if not key.startswith("../")}
    assert len(of_pairs) > 60
    assert all(name == key for name, key in of_pairs.items())
    assert {name for name in named if name not in of_pairs} == {
        "cifar100/alone", "cifar100/dist", "cifar100/kd", "imagenet/alone", "imagenet/kd",
    }  # fmt: skip


@pytest.mark.parametrize("pair", sorted({str(name.parent) for name, key in shipped().items() if name.stem == "kd++"}))
def test_every_row_of_a_pair_is_in_the_ledger(pair):
    data = pair.partition("/")[0]
    overlays = [
        name.as_posix() for name in shipped() if name.as_posix().startswith((f"{pair}/overlays", f"{data}/over"))
    ]
    assert overlays
    for overlay in overlays:
        key = key_of(f"{pair}/kd++.yaml", overlay)
        assert key.startswith(f"{pair}/")
        check_key(key)


@pytest.mark.parametrize(
    ("configs", "key"),
    [
        ([f"{R56}/kd++.yaml"], f"{R56}/kd++"),
        ([f"{R56}/kd++.yaml", "cifar100/overlays/kd.yaml", "cifar100/overlays/mdistiller.yaml"], f"{R56}/kd"),
        ([f"{R56}/kd++.yaml", f"{R56}/overlays/dkd++.yaml"], f"{R56}/dkd++"),
        ([f"{R56}/kd++.yaml", f"{R56}/overlays/ablation/l2.yaml"], "null"),  # another method, of no row
        ([f"{R56}/kd++.yaml", "trainer/ema.yaml"], f"{R56}/kd++"),
        (["cifar100/r56_r20_short/kd++.yaml", "cifar100/overlays/kd.yaml"], "null"),  # beside no key
        (["digits/kd++.yaml"], None),
    ],
)
def test_the_key_is_that_of_the_method(configs, key):
    assert key_of(*configs) == key


def test_the_command_line_has_the_last_word():
    assert key_of(f"{R56}/kd++.yaml", option=["--published", f"{R56}/teacher"]) == ""


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        (f"{R56}/kd+", f"did you mean {R56}/kd++, "),
        ("r56_r20/kd++", f"did you mean {R56}/kd++"),
        ("cifar10/x/dist++", "did you mean cifar100/"),
        ("mine", "such keys are cifar100/r56_r20/kd++"),
    ],
)
def test_an_unknown_key(key, hint):
    assert refusal(check_key, key).startswith(f"published: the published figures have no {key}; {hint}")


def test_fit_keeps_the_key_and_refuses_an_unknown_one(folder):
    (folder / "mine.yaml").write_text(f"published: {R56}/kdd++\n")
    given = ["fit", "--config", "digits/student.yaml", "--config", "mine.yaml"]
    status, out, err = ndkd(*given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"ndkd: published: the published figures have no {R56}/kdd++; did you mean ")
    assert not (folder / "runs").exists()
    (folder / "mine.yaml").write_text(f"published: {R56}/kd++\n")
    assert yaml.safe_load(ndkd(*given, "--print_config")[1])["published"] == f"{R56}/kd++"
