"""YAML that is not what it looks like is refused before a parser reads it: keys given twice, aliases without end."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from ndkd.configuration.shipped import find_config, shipped_name
from ndkd.errors import NdkdError

MOST_VALUES = 100_000  # with aliases written out; ImageNet's 21,841 names of classes are fine
DEEPEST = 50
BLOCKS = ("trainer", "class_means", "model", "data")  # of entries each
CLASSES = ("model", "data", "loss", "optimizer", "lr_scheduler")
ENDINGS = (".yaml", ".yml", ".json")
OVERLAYS = ("overlays", "loggers", "trainer")  # folders of what is given after a configuration
PARTS = ("fragments", "sweeps")  # of what no command reads by itself


def check_configs(names: list[str], is_class_given: bool = False) -> None:
    """Raise ``NdkdError`` if configurations that are given together are none, or only change one that is not given.

    Args:
        names: of files, here or among the shipped ones.
        is_class_given: whether an option says what is trained.
    """
    for name in names:
        check_config(name)
    if names and not is_class_given and all(_folder_of_parts(name) for name in names):
        kind = _folder_of_parts(names[0])
        if kind in OVERLAYS:
            raise NdkdError(
                f"config {names[0]} is an overlay: give the configuration that it changes before it, for example "
                "digits/kd++.yaml"
            )
        raise NdkdError(f"config {names[0]} is one of the {kind}, which are no configurations; see ndkd configs")


def _folder_of_parts(name: str) -> str | None:
    """The folder that says that a file is a part of a configuration, None if it says what is trained."""
    file = find_config(name)
    folders = (shipped_name(file) or file).parts[:-1]
    kind = next((folder for folder in reversed(folders) if folder in OVERLAYS + PARTS), None)
    entries = yaml.safe_load(read_text(file))
    return None if isinstance(entries.get("model"), dict) and "class_path" in entries["model"] else kind


def check_config(name: str | Path) -> None:
    """Raise ``NdkdError`` if a configuration, or one that it names, cannot mean what it says.

    A file that is missing (those of about its name are named) or is no text; keys that are given twice; aliases that
    lead back to themselves or stand for more values than anyone writes; blocks that are no blocks.
    """
    config = find_config(name)
    where, root = f"config {config}", check_file(config)
    if not isinstance(root, yaml.MappingNode):
        raise NdkdError(f"{where}: wanted entries such as trainer and model, got {_shown(root)}")
    for key, block in root.value:
        names_it = key.value in ("model", "data") and _is_text(block)  # a class, or a file
        if key.value in BLOCKS and not isinstance(block, yaml.MappingNode) and not names_it:
            place = f"{where}, line {_line(key)}"
            raise NdkdError(f"{place}: {key.value}: wanted entries, got {_shown(block)}; fill it or leave it out")


def check_option(option: str) -> None:
    """The same for a value on the command line, ``--name=value`` or the value alone: YAML, or the name of a file."""
    name, _, value = option.rpartition("=") if option.startswith("--") else ("", "", option)
    if value.endswith(ENDINGS) and Path(value).is_file() and name not in ("--config", "--ckpt_path"):
        check_file(Path(value))
    elif any(mark in value for mark in "{[&"):
        try:
            check_text(value, f"option {name or value[:40]}")
        except NdkdError as error:
            if not isinstance(error.__cause__, yaml.YAMLError):  # else the parser takes it for a mere text
                raise


def check_file(config: Path, above: tuple[Path, ...] = ()) -> yaml.Node:
    """The checked content of a file; those that its values name are checked too."""
    if config.resolve() in above:
        raise NdkdError(f"config {above[-1]} names {config}, which names it in turn; take one of both names out")
    root = check_text(read_text(config), f"config {config}")
    for value in texts(root):
        if value.endswith(ENDINGS) and (named := config.parent / value).is_file():
            check_file(named, (*above, config.resolve()))
    return root


def read_text(config: Path) -> str:
    """The text of a configuration; ``NdkdError`` if it cannot be read or there is none."""
    try:
        text = config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise NdkdError(f"config {config} is not a text file in UTF-8; give a YAML file that is") from error
    except OSError as error:
        raise NdkdError(f"config {config} cannot be read: {error.strerror}; see its permissions") from error
    if not text.strip():
        raise NdkdError(f"config {config} is empty; see ndkd configs digits/kd++.yaml for one that is not")
    return text


def check_text(text: str, where: str) -> yaml.Node:
    """The YAML in a text as a graph of nodes, in which an alias takes no room.

    Raises:
        NdkdError: no YAML, a key that is given twice, aliases that lead back or stand for too many values.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # far down, composing takes seconds and all the stack
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                _refuse_depth(f"{where}, line {_line(event)}")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise NdkdError(f"{where} is not valid YAML: {why}") from error
    if root is None:
        raise NdkdError(f"{where} has no entry; see ndkd configs digits/kd++.yaml for one that has")
    _count(root, where, {}, ())
    return root


def _count(node: yaml.Node, where: str, known: dict[int, int], above: tuple[int, ...]) -> int:
    """How many values a node stands for, each counted once per place."""
    line = f"{where}, line {_line(node)}"
    if id(node) in above:
        raise NdkdError(f"{line}: an alias leads back to what it stands in; write the values out")
    if len(above) > DEEPEST:
        _refuse_depth(line)
    if id(node) not in known:
        if isinstance(node, yaml.MappingNode):
            _check_keys(node, where)
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = () if isinstance(node, yaml.ScalarNode) else inner
        known[id(node)] = 1 + sum(_count(part, where, known, (*above, id(node))) for part in inner)
        if known[id(node)] > MOST_VALUES:
            raise NdkdError(f"{line}: wanted at most {MOST_VALUES:,} values, aliases written out; leave some out")
    return known[id(node)]


def _check_keys(node: yaml.MappingNode, where: str) -> None:
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = f"{where}, line {_line(key)}"
        if not isinstance(key, yaml.ScalarNode) or key.value != "".join(key.value.split()) or not key.value:
            raise NdkdError(f"{line}: wanted a name before the colon, got {_shown(key)!r}")
        if key.value in lines:
            both = f"{lines[key.value]} and {_line(key)}"
            raise NdkdError(f"{where}: {key.value} is given twice, in lines {both}; keep one")
        lines[key.value] = _line(key)
        if key.value == "class_path" and not _is_text(value):
            raise NdkdError(f"{line}: class_path: wanted the name of a class, got {_shown(value)}")
        if key.value in CLASSES and value.value == [] and isinstance(value, yaml.MappingNode):
            raise NdkdError(f"{line}: {key.value}: wanted a class_path, got no entry; fill it or leave it out")
        if key.value in ("init_args", "losses") and not isinstance(value, yaml.MappingNode):
            raise NdkdError(f"{line}: {key.value}: wanted entries, got {_shown(value)}; fill it or leave it out")
        if key.value == "losses":
            _check_terms(value, where)


def _check_terms(losses: yaml.MappingNode, where: str) -> None:
    for name, term in losses.value:
        line = f"{where}, line {_line(name)}"
        if not _is_text(name):
            raise NdkdError(f"{line}: losses: wanted a word as the name of a term, got {_shown(name)}")
        if not isinstance(term, yaml.MappingNode) and term.tag != "tag:yaml.org,2002:null":  # null removes a term
            raise NdkdError(f"{line}: losses.{name.value}: wanted entries such as loss and weight, got {_shown(term)}")


def texts(node: yaml.Node, seen: set[int] | None = None) -> Iterator[str]:
    """The values in a graph of nodes, each once; keys are not among them."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        yield node.value
        return
    for part in node.value:
        yield from texts(part[1] if isinstance(part, tuple) else part, seen)


def _refuse_depth(line: str) -> None:
    raise NdkdError(f"{line}: wanted values at most {DEEPEST} deep")


def _line(node: yaml.Node | yaml.Event) -> int:
    return int(node.start_mark.line) + 1


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "entries" if isinstance(node, yaml.MappingNode) else node.value or "nothing"
