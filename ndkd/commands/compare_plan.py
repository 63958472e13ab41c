"""Which runs a comparison has, and what is wrong with them that can be told before the first begins."""

from collections.abc import Sequence
from math import inf
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple

from ndkd.commands.compare_jobs import Fit
from ndkd.commands.training import resolved_config
from ndkd.configuration.arguments import default_run_dir
from ndkd.configuration.checks import check_configs
from ndkd.configuration.entries import differences, entry
from ndkd.distillation.step_output import ONE, asks_for, of_teacher
from ndkd.errors import NdkdError, shortened, suggestion
from ndkd.models.checkpoint_files import hub_file
from ndkd.runs import Run

# where things are kept, not what the run is
PLACES = ("run_dir", "trainer.default_root_dir", "trainer.logger", "teacher_cache.dir", "published")
OPEN = ("losses", "teachers", "student.kwargs", "teacher.kwargs")  # entries of a model whose own entries are anyone's


class Sweep(NamedTuple):
    """A loss term and the weights that it is to have."""

    term: str
    weights: list[float]


class Variant(NamedTuple):
    """A configuration with other weights of its terms.

    Args:
        name: of its row.
        weights: of terms, where they are not the configuration's own.
        control: the name of the row that it is compared with.
        swept: the weight that the sweep gives it.
    """

    name: str
    weights: dict[str, float]
    control: str | None = None
    swept: float | None = None


def read_sweep(given: Sequence[str]) -> Sweep:
    """The term and the weights that ``--sweep`` names.

    Raises:
        NdkdError: no weights, or not different finite numbers from 0 on.
    """
    term, *words = given
    weights = []
    for word in words:
        try:
            weights.append(float(word))
        except ValueError as error:
            hint = "put configurations before --sweep or after another option"
            raise NdkdError(f"sweep: wanted weights of {term}, got {word}; {hint}") from error
    if not weights or len({*map(_number, weights)}) < len(weights) or not all(0 <= w < inf for w in weights):
        raise NdkdError(f"sweep: wanted different weights of {term} from 0 on, got {' '.join(words) or 'none'}")
    return Sweep(term, weights)


def _number(weight: float) -> str:
    return f"{weight:.12g}"


def plan(
    configs: list[str],
    seeds: Sequence[int],
    out: Path,
    control: str | None,
    sweep: Sweep | None,
    extra: Sequence[str],
    teacher: Fit | None,
) -> list[Fit]:
    """All runs, and what is wrong with them that can be told before the first begins."""
    names = {config: _name(config) for config in configs}
    for name in names.values():
        if len(twice := [config for config in configs if names[config] == name]) > 1:
            raise NdkdError(f"{shortened(twice)} have one name, {name}: give each file a name of its own")
    rows: list[tuple[Variant, list[str], dict[str, Any]]] = []
    terms: list[str] = []
    for config, name in names.items():
        options = [*_files(config), *extra]
        resolved = _resolved(name, [*options, "--run_dir", str(out)])
        _check_teacher(name, resolved, teacher)
        weights = {term: given["weight"] for term, given in (resolved["model"]["init_args"]["losses"] or {}).items()}
        terms += weights
        for variant in variants(name, weights, control, sweep):
            changed = _changes(variant, resolved)
            given = [*options, *changed]
            found = _resolved(variant.name, [*given, "--run_dir", str(out)]) if changed else resolved
            rows.append((variant, given, found))
    for option, term in {"control": control, "sweep": sweep and sweep.term}.items():
        if term and term not in terms:
            raise NdkdError(
                f"{option}: no configuration has a loss term {term}; {suggestion(term, sorted(set(terms)))}"
            )
    fits = []
    for seed in seeds:  # outside, so that a table broken off still compares
        for variant, options, resolved in rows:
            run = Run(out / f"{variant.name}-seed{seed}")
            options = [*options, "--seed_everything", str(seed), "--run_dir", str(run.path)]
            row = {"config": variant.name, "seed": seed, "control": variant.control}
            row["published"] = resolved.get("published")
            if sweep is not None and variant.swept is not None:
                row |= {"term": sweep.term, "weight": variant.swept}
            fits.append(Fit(run, options, {**resolved, "seed_everything": seed}, row))
            _check_unchanged(fits[-1])
            _check_protocol(fits[-1], fits[0])
    return fits


def variants(name: str, weights: dict[str, float], control: str | None, sweep: Sweep | None) -> list[Variant]:
    """The rows that one configuration becomes, each control before the first that is compared with it.

    >>> [variant.name for variant in variants("kd++", {"nd": 1.0}, None, Sweep("nd", [0.0, 0.5]))]
    ['kd++-nd0', 'kd++-nd0.5']
    """
    term: str | None = None
    values: list[float | None] = [None]
    if sweep and sweep.term in weights:
        term, values = sweep.term, [*sweep.weights]
    if term is not None and term == control and 0 not in values:
        values = [0.0, *values]
    found = []
    for value in values:
        tail, changed = "", dict[str, float]()
        if term is not None and value is not None:
            tail, changed = f"-{term}{_number(value)}", {term: value}
        without = f"{name}-{term}0" if value and 0 in values else None  # a swept weight of 0 is the control
        if control is not None and control != term and weights.get(control):
            without = f"{name}-{control}0{tail}"
            found.append(Variant(without, {control: 0.0, **changed}, None, value))
        found.append(Variant(name + tail, changed, without, value))
    return found


def _changes(variant: Variant, config: dict[str, Any]) -> list[str]:
    """The options that make a variant of a configuration; with other weights it is not what was published."""
    found = []
    for term, weight in variant.weights.items():
        found += [f"--model.init_args.losses.{term}.weight", _number(weight)]
    return [*found, "--published", "null"] if found and config.get("published") else found


def _name(config: str) -> str:
    """What a configuration's row is called: like its run folder."""
    return default_run_dir(["fit", *_files(config)], seed=0).name


def teacher_fit(config: str) -> Fit:
    """The teacher's own run."""
    options = _files(config)
    return Fit(Run(default_run_dir(["fit", *options], seed=0)), options, _resolved("teacher", options))


def _files(config: str) -> list[str]:
    """A configuration's options: of each of its files."""
    files = config.split(",")
    check_configs(files)
    return [option for file in files for option in ("--config", file)]


def _resolved(name: str, options: list[str]) -> dict[str, Any]:
    """The configuration that ``ndkd fit`` makes of these options."""
    try:
        return resolved_config(options)
    except NdkdError as error:
        raise NdkdError(f"configuration {name}: {error}") from error


def _check_teacher(name: str, config: dict[str, Any], teacher: Fit | None) -> None:
    for each in described_teachers(config):
        _check_checkpoint(name, each.get("checkpoint"), teacher)


def _check_checkpoint(name: str, wanted: str | None, teacher: Fit | None) -> None:
    made = [teacher.run.checkpoint(kind) for kind in ("last", "best")] if teacher else []
    if not wanted or hub_file(wanted) or Path(wanted).is_file():
        return
    if Path(wanted).resolve() not in [path.resolve() for path in made]:
        trains = f"--teacher trains {made[0]}" if made else "give the teacher's configuration as --teacher CONFIG"
        raise NdkdError(f"configuration {name}: its teacher {wanted} does not exist; {trains}")


def _check_unchanged(fit: Fit) -> None:
    """Raise ``NdkdError`` if the folder holds a run of another configuration."""
    if found := what_differs(fit):
        raise NdkdError(f"{fit.run.path} has {found}: remove it or choose another --out DIR")


def what_differs(fit: Fit) -> str | None:
    """The first entry that a run was made with otherwise, in words; None if there is none."""
    kept = fit.run.read_config() if fit.run.is_used else {}
    now, before = ({**config, **_open_entries(config)} for config in (fit.config, kept))
    # without a teacher of its own a run uses the means for its statistics alone
    ignored = PLACES if teachers_of(fit.config) else (*PLACES, "class_means.file")
    for name, (value, old) in differences(now, before).items():
        if not name.startswith(ignored):
            return f"{name} {str(old)[:100]}, not {str(value)[:100]}"
    return None


def _open_entries(config: dict[str, Any]) -> dict[str, str]:
    """The names under those entries that have no fixed ones; of the rest, what a newer ndkd adds has its default."""
    found = {name: entry(config, name) for name in (f"model.init_args.{entry}" for entry in OPEN)}
    return {
        name: " ".join(sorted(map(str, names))) or "none" for name, names in found.items() if isinstance(names, dict)
    }


def _check_protocol(fit: Fit, first: Fit) -> None:
    """Raise ``NdkdError`` if the results of two runs do not belong in one table."""
    if fit.protocol != first.protocol or fit.config["model"]["class_path"] != first.config["model"]["class_path"]:
        names = [each.row["config"] for each in (fit, first)]
        raise NdkdError(
            f"{names[0]} is {fit.protocol}, {names[1]} {first.protocol}: results of two protocols do not belong in one "
            "table; compare them apart"
        )


def described_teachers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration's entries of teachers."""
    model = config["model"]["init_args"]
    return [each for each in (model.get(ONE), *(model.get("teachers") or {}).values()) if each]


def teachers_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """A configuration's entries of teachers, none if no loss asks for one."""
    model = config["model"]["init_args"]
    inputs = [source for term in (model.get("losses") or {}).values() if term["weight"] for source in _inputs(term)]
    names = model.get("teachers") or [ONE]
    return described_teachers(config) if any(asks_for(name, inputs) for name in names) else []


def _inputs(term: dict[str, Any]) -> list[str]:
    own = term["inputs"] or getattr(locate(term["loss"]["class_path"]), "inputs", ())
    pseudo_labels = ["teacher.logits"] if term.get("pseudo_labels") else []
    return [of_teacher(source, term.get("teacher") or ONE) for source in (*own, *pseudo_labels)]
