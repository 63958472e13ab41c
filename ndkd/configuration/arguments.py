"""What the words of a command line say about configurations."""

from pathlib import Path


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


def default_run_dir(arguments: list[str], seed: int) -> Path:
    """``runs/`` and the names of the configs; overlays of ``loggers`` and ``trainer`` folders do not count.

    >>> default_run_dir(["fit", "--config", "configs/digits/kd++.yaml"], seed=1).as_posix()
    'runs/digits/kd++-seed1'
    >>> default_run_dir(["fit", "--config", "configs/digits/student.yaml", "--config", "mine.yaml"], seed=0).as_posix()
    'runs/digits/student,mine'
    """
    names = []
    for config in map(Path, values_of(("--config", "-c"), arguments)):
        if config.parent.name not in ("loggers", "trainer"):  # how a run is made, not what
            parts = config.with_suffix("").parts
            whole = "/".join(parts[parts.index("configs") + 1 :]) if "configs" in parts[:-1] else parts[-1]
            names.append(parts[-1] if names else whole)
    return Path("runs", (",".join(names) or "unnamed") + (f"-seed{seed}" if seed else ""))
