"""What the words of a command line say about configurations."""

import re
from pathlib import Path

from ndkd.configuration.overlays import CONFIG, spells_a_set
from ndkd.configuration.shipped import FOLDER, find_config, lookup, shipped_name
from ndkd.errors import NdkdError

DEEP = re.compile(r"--model\.init_args\.[^.]+(\.[^.]+)+")  # entries of entries of a model


def values_of(names: tuple[str, ...], arguments: list[str]) -> list[str]:
    """The values that an option is given, as ``--name value`` or ``--name=value``."""
    joined = [argument.split("=", 1) for argument in arguments if "=" in argument]
    return [value for name, value in [*zip(arguments, arguments[1:], strict=False), *joined] if name in names]


def without_option(name: str, arguments: list[str]) -> list[str]:
    """The arguments but this option and its values.

    >>> without_option("--trust", ["--a", "1", "--trust", "mine", "--trust=yours", "b"])
    ['--a', '1', 'b']
    """
    before = ["", *arguments]
    given = (name, f"{name}=")
    return [a for a, last in zip(arguments, before, strict=False) if last != name and not a.startswith(given)]


def with_found_configs(arguments: list[str]) -> list[str]:
    """The arguments with the files that the names of configurations stand for.

    Raises:
        NdkdError: no such file.
    """
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, is_joined, value = argument.partition("=")
        if before in CONFIG:
            found.append(str(find_config(argument)))
        else:
            found.append(f"{name}={find_config(value)}" if is_joined and name in CONFIG else argument)
    return found


def with_whole_names(arguments: list[str]) -> list[str]:
    """The arguments with ``--teacher_cache DIR`` and ``--….weight.auto SHARE`` as the entries that they stand for.

    >>> with_whole_names(["fit", "--teacher_cache", "recorded", "--teacher_cache.top_k=5"])
    ['fit', '--teacher_cache.dir', 'recorded', '--teacher_cache.top_k=5']
    >>> with_whole_names(["fit", "--model.init_args.losses.nd.weight.auto", "0.2"])
    ['fit', '--model.init_args.losses.nd.weight', '{auto: 0.2}']
    """
    short, whole, auto = "--teacher_cache", "--teacher_cache.dir", ".weight.auto"
    found: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, is_joined, value = argument.partition("=")
        if name.startswith("--") and name.endswith(auto):
            name = name.removesuffix(".auto")
            found.append(f"{name}={{auto: {value}}}" if is_joined else name)
        elif before.startswith("--") and before.endswith(auto):
            found.append(f"{{auto: {argument}}}")
        else:
            found.append(whole + argument.removeprefix(short) if name == short else argument)
    return found


def with_nulls(arguments: list[str]) -> list[str]:
    """The arguments with ``--model.init_args.student.ENTRY null`` and the like as configurations.

    To the parser null is, so deep in the names of options, the word None.

    Raises:
        NdkdError: null for one of entries that are anyone's, which a configuration can only give all together.

    >>> with_nulls(["fit", "--model.init_args.student.compile", "null", "--model.init_args.losses.nd.inputs=null"])
    ['fit', '--config', 'model: {init_args: {student: {compile: null}}}', '--config', \
'model: {init_args: {losses: {nd: {inputs: null}}}}']
    """
    found: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, is_joined, value = argument.partition("=")
        if is_joined and value == "null" and DEEP.fullmatch(name):
            found += ["--config", _null_at(name)]
        elif argument == "null" and DEEP.fullmatch(before):
            found[-1:] = ["--config", _null_at(before)]
        else:
            found.append(argument)
    return found


def _null_at(option: str) -> str:
    if found := re.match(r"--model\.init_args\.(teachers|.+\.kwargs)\.", option):
        raise NdkdError(f"{option} cannot be null by itself: give all of {found[0][2:-1]}, in a configuration")
    model, *names = option.removeprefix("--").split(".")
    return f"{model}: " + "".join(f"{{{name}: " for name in names) + "null" + "}" * len(names)


def default_run_dir(arguments: list[str], seed: int) -> Path:
    """``runs/`` and the names of the configurations, with their folders below ``configs``.

    A configuration that spells a set of loss terms is a method of its own, and takes the place of the names before it
    but for the folder. How a run is made does not count: overlays in folders ``loggers`` and ``trainer``.

    >>> default_run_dir(["fit", "--config", "configs/digits/kd++.yaml"], seed=1).as_posix()
    'runs/digits/kd++-seed1'
    >>> default_run_dir(["fit", "--config", "configs/digits/student.yaml", "--config", "mine.yaml"], seed=0).as_posix()
    'runs/digits/student,mine'
    """
    folder = Path("runs")
    names: list[str] = []
    for config in values_of(CONFIG, arguments):
        file = lookup(config) or Path(config)
        below = shipped_name(file)
        parts = (Path(FOLDER, below) if below else file).with_suffix("").parts
        if parts[-2:-1] in (("loggers",), ("trainer",)):
            continue
        if not names and FOLDER in parts[:-1]:
            folder = Path("runs", *parts[parts.index(FOLDER) + 1 : -1])
        names = [parts[-1]] if spells_a_set(str(file)) else [*names, parts[-1]]
    return folder / ((",".join(names) or "unnamed") + (f"-seed{seed}" if seed else ""))
