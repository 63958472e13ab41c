"""What may be built from the names in a file of weights or in a run folder, see docs/security.md.

A configuration given on the command line is code, chosen by whoever gives it. Checkpoints and run folders are passed
around: the names in them build models, losses, optimizers and data of a few packages, and nothing else, unless a
package is trusted by name.
"""

import importlib
import os
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from torch import nn
from torchvision.transforms import v2

from ndkd.configuration.shipped import find_config
from ndkd.errors import NdkdError, suggestion

PACKAGES = ["torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms.v2", "timm"]
PACKAGES += ["lightning.pytorch", "ndkd"]
# Of Lightning's and of our callbacks only what evaluation may meet, and what neither writes files nor calls a function
# that it is given
LIGHTNING = {"EarlyStopping", "LearningRateMonitor", "DeviceStatsMonitor", "Timer", "GradientAccumulationScheduler"}
LIGHTNING |= {"TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary", "ReduceLROnPlateau"}
LIGHTNING |= {"EMAWeightAveraging", "Freezing", "TermGradients"}
LIGHTNING |= {"SingleDeviceStrategy", "DDPStrategy"}
LIGHTNING |= {"LightningEnvironment", "SLURMEnvironment", "TorchElasticEnvironment"}
# where a class is named without its module
SHORT = ("ndkd.data", "ndkd.losses", "ndkd.distillation.module", "ndkd.distillation.detection", "ndkd.schedules")
# arguments of timm's and torchvision's functions by which a model reads another file or a hub
FETCHING = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained", "weights"}
FETCHING |= {"weights_backbone", "pretrained_backbone"}
ENTRIES = {"seed_everything", "trainer", "model", "data", "class_means", "teacher_cache", "run_dir", "published"}
ENTRIES |= {"weights_only"}
NAME = re.compile(r"[^\W\d]\w*([.:][^\W\d]\w*)+")  # my_package.losses.Mine or my_package.models:build
WORD = re.compile(r"[\w,:+-]*")  # a value of the trainer that is neither a name nor a path


class Trust:
    """Which names are trusted besides those of ``PACKAGES``.

    Args:
        packages: ``my_package`` or ``my_package.models``, with everything in it; several may be joined by commas. The
            environment's ``NDKD_TRUST`` adds its own.
        configs: files given on the command line; the very names in them are trusted.
    """

    def __init__(self, packages: Iterable[str] = (), configs: Iterable[Path] = ()):
        given = ",".join([*packages, os.environ.get("NDKD_TRUST", "")])
        self.packages = [name.strip() for name in given.split(",") if name.strip()]
        for name in self.packages:
            if ":" in name or not NAME.fullmatch(f"top.{name}"):
                raise NdkdError(f"trust: wanted the name of a package such as my_package, got {name!r}")
        self.names: set[str] = set()
        for config in configs:
            try:
                self.names |= set(_names_in(yaml.safe_load(find_config(config).read_text(encoding="utf-8"))))
            except (UnicodeDecodeError, yaml.YAMLError) as error:
                raise NdkdError(f"config {config} is not a YAML file: {error}") from error

    def check_config(self, config: dict[str, Any], source: str) -> None:
        """Raise ``NdkdError`` unless all that a resolved configuration names is trusted.

        Args:
            config: the content of a run folder's ``config.yaml``.
            source: what to call it in a message.
        """
        _only(ENTRIES, config, source)
        for entry, value in _dictionary(config.get("trainer") or {}, f"{source}: trainer").items():
            if entry != "default_root_dir":
                self._check_trainer(value, f"{source}: trainer.{entry}")
        _check_plain(config.get("class_means"), f"{source}: class_means")
        self.check_data(config.get("data"), source)
        self._check_module(config.get("model"), f"{source}: model")

    def check_data(self, data: Any, source: str) -> None:
        """Raise ``NdkdError`` unless the ``data`` entry of a configuration is trusted."""
        where = f"{source}: data"
        if self._check_class(data, where).startswith("ndkd."):
            options = dict(_dictionary(data.get("init_args") or {}, where))
            for number, step in enumerate(options.pop("transforms", None) or ()):
                self._check_class(step, f"{where}.transforms.{number}")
                self._check_arguments(step, f"{where}.transforms.{number}")
            _check_plain(options, where)  # paths are what its entries are
        else:
            self._check_arguments(data, where)

    def check_model(self, model: Any, source: str) -> None:
        """Raise ``NdkdError`` unless a student or a teacher is trusted.

        Args:
            model: what makes a ``ndkd.models.ModelConfig``.
            source: what to call it in a message.
        """
        name = _dictionary(model, source).get("name")
        if not isinstance(name, str):
            raise NdkdError(f"{source}: wanted the name of a model, got {name!r}")
        if ":" in name and not (self._is_trusted(name) or is_builder(name)):
            raise self._untrusted(name, source)
        is_own = name.startswith("detector/") or self._is_trusted(name)
        for key, value in _dictionary(model.get("kwargs") or {}, f"{source}: kwargs").items():
            if not str(key).isidentifier() or (key in FETCHING and value and not is_own):
                raise NdkdError(
                    f"{source}: kwargs {key} {value!r} is refused in a file from elsewhere; give a configuration of "
                    "your own with --config; see docs/security.md"
                )
            self._check_value(value, f"{source}: kwargs.{key}", is_own)
        _check_plain({key: value for key, value in model.items() if key != "kwargs"}, source)

    def _check_module(self, model: Any, where: str) -> None:
        if not self._check_class(model, where).startswith("ndkd."):
            return self._check_arguments(model, where)
        arguments = dict(_dictionary(model.get("init_args") or {}, where))
        for entry in ("student", "teacher"):
            if (described := arguments.pop(entry, None)) is not None:
                self.check_model(described, f"{where}.{entry}")
        for name, described in _dictionary(arguments.pop("teachers", None) or {}, f"{where}.teachers").items():
            self.check_model(described, f"{where}.teachers.{name}")
        for entry in ("optimizer", "lr_scheduler"):
            if (described := arguments.pop(entry, None)) is not None:
                self._check_class(described, f"{where}.{entry}")
                self._check_arguments(described, f"{where}.{entry}")
        for name, term in _dictionary(arguments.pop("losses", None) or {}, f"{where}.losses").items():
            term = dict(_dictionary(term, f"{where}.losses.{name}"))
            loss = term.pop("loss", None)
            self._check_class(loss, f"{where}.losses.{name}.loss")
            self._check_arguments(loss, f"{where}.losses.{name}.loss")
            if isinstance(weight := term.get("weight"), dict):  # {auto: SHARE}
                _check_plain(weight, f"{where}.losses.{name}.weight")
                _only({"auto"}, weight, f"{where}.losses.{name}.weight")
                del term["weight"]
            _check_plain(term, f"{where}.losses.{name}")
        return _check_plain(arguments, where)

    def _check_trainer(self, value: Any, where: str) -> None:
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                self._check_class(entry, where)
                self._check_arguments(entry, where)
            elif isinstance(entry, str) and not WORD.fullmatch(entry):
                raise self._untrusted(entry, where)

    def _check_class(self, entry: Any, where: str) -> str:
        """The full name of the class of ``{class_path: NAME, init_args: …}``."""
        _only({"class_path", "init_args", "dict_kwargs"}, _dictionary(entry, where), where)
        name = entry.get("class_path")
        if not isinstance(name, str):
            raise NdkdError(f"{where}: wanted class_path and init_args, got {str(entry)[:80]}")
        if self._is_trusted(name):
            return name
        # without a module the parser looks among the classes that are there already
        full = name if re.search("[.:]", name) else _full_name(name, where)
        if ":" in full or not is_builder(full):
            raise self._untrusted(name, where)
        return full

    def _check_arguments(self, entry: dict[str, Any], where: str) -> None:
        """Of a class that is none of ndkd's, whose arguments may be anything that has a name."""
        for kind in ("init_args", "dict_kwargs"):
            self._check_value(entry.get(kind), f"{where}.{kind}", is_own=self._is_trusted(entry["class_path"]))

    def _check_value(self, value: Any, where: str, is_own: bool) -> None:
        """Of an argument without a known type: nothing untrusted, no file unless it is one's own class."""
        if isinstance(value, dict) and "class_path" in value:
            self._check_class(value, where)
            return self._check_arguments(value, where)
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value if _is_list(value) else ()):
            self._check_value(inner, f"{where}.{key}", is_own)
        if not isinstance(value, str) or self._is_trusted(value):
            return None
        if NAME.fullmatch(value) and _is_importable(value) and not is_builder(value):
            raise self._untrusted(value, where)
        if not is_own and Path(value[:4096]).is_file():  # the parser would take it for a part of the configuration
            raise NdkdError(f"{where} names a file, {value}; give a configuration of your own with --config FILE")
        return None

    def _is_trusted(self, name: str) -> bool:
        dotted = name.replace(":", ".")
        return name in self.names or any(f"{dotted}.".startswith(f"{package}.") for package in self.packages)

    def _untrusted(self, name: str, where: str) -> NdkdError:
        package = re.split(r"[.:]", name)[0]
        return NdkdError(
            f"{where} is {name[:100]}, which could run any code and is not built from a file; if you trust whoever "
            f"made it, add --trust {package} or set NDKD_TRUST={package}, or name it in a configuration of your own "
            "with --config FILE; see docs/security.md"
        )


def is_builder(name: str) -> bool:
    """Whether ``package.module.Class`` or ``package.module:model`` is one of ``PACKAGES``' that only builds.

    A class must be a module, an optimizer, a scheduler, data, or one of ``LIGHTNING``; a function a model that
    torchvision or timm has registered.
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    if not _is_under(module, PACKAGES) or not NAME.fullmatch(name) or "__" in name:
        return False
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return False
    home = str(getattr(found, "__module__", ""))
    if not _is_under(home, PACKAGES):
        return False  # what a module has imported for itself
    if not isinstance(found, type):
        return ":" in name and _is_registered(found)
    if _is_under(home, ["lightning", "ndkd.callbacks"]):
        return found.__name__ in LIGHTNING
    if _is_under(home, ["torchvision.transforms"]):  # Lambda calls whatever function it is given
        return issubclass(found, v2.Transform) and found is not v2.Lambda
    return issubclass(found, _kinds())


def _full_name(name: str, where: str) -> str:
    modules = [importlib.import_module(module) for module in SHORT]
    if found := next((module.__name__ for module in modules if hasattr(module, name)), None):
        return f"{found}.{name}"
    known = [known for module in modules for known in vars(module) if is_builder(f"{module.__name__}.{known}")]
    raise NdkdError(f"{where}: there is no class {name}; {suggestion(name, known)}")


def _kinds() -> tuple[type, ...]:
    from lightning.pytorch import LightningDataModule

    return nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, LightningDataModule


def _is_registered(found: Any) -> bool:
    name = getattr(found, "__name__", "")
    if _is_under(found.__module__, ["torchvision.models"]):
        return name in torchvision.models.list_models() and torchvision.models.get_model_builder(name) is found
    if _is_under(found.__module__, ["timm.models"]):
        import timm

        return timm.is_model(name) and timm.model_entrypoint(name) is found
    return False


def _is_under(module: str, packages: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _is_importable(name: str) -> bool:
    try:
        return find_spec(re.split(r"[.:]", name)[0]) is not None
    except (ImportError, ValueError):
        return True  # __main__, for example


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _dictionary(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise NdkdError(f"{where}: wanted its entries, got {str(value)[:80]!r}")
    return value


def _only(known: set[str], entries: dict, where: str) -> None:
    if unknown := sorted(map(str, entries.keys() - known)):
        raise NdkdError(f"{where}: unknown entry {unknown[0]!r}; give a configuration of your own with --config FILE")


def _check_plain(value: Any, where: str) -> None:
    """Numbers and texts of ndkd's own options: a class or a dictionary has no place there."""
    for inner in value.values() if isinstance(value, dict) else value if _is_list(value) else ():
        if isinstance(inner, dict):
            raise NdkdError(f"{where}: wanted a value, got {str(inner)[:80]}")
        _check_plain(inner, where)


def _names_in(config: Any) -> Iterator[str]:
    """Every class and every function that a configuration names."""
    for key, value in config.items() if isinstance(config, dict) else enumerate(config if _is_list(config) else ()):
        if isinstance(value, str) and NAME.fullmatch(value) and (key == "class_path" or ":" in value):
            yield value
        yield from _names_in(value)
