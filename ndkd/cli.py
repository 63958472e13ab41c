"""ndkd: knowledge distillation that regularises feature norm and direction (https://arxiv.org/abs/2305.17007)

usage: ndkd COMMAND --config FILE [--config FILE …] [--OPTION VALUE …]

{commands}

Start here: ndkd fit --config digits/teacher.yaml && ndkd fit --config digits/kd++.yaml
Configurations that come with ndkd: ndkd configs
Many runs and their table: ndkd compare --help
Help on one command: ndkd COMMAND --help
"""

# Help, which is in the docstrings, and plain mistakes are answered here, before anything heavy is imported.
import argparse
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

from ndkd.commands.parsers import EPILOGS, PARSERS
from ndkd.configuration.arguments import values_of
from ndkd.configuration.overlays import CONFIG
from ndkd.errors import NdkdError, plain_words, suggestion
from ndkd.stopping import end_with_parent, stop, stoppable

COMMANDS = {
    "fit": "train a student with a teacher, or a model by itself, then test it",
    "diagnose": "look at teacher, labels and loss terms before a training",
    "validate": "evaluate a checkpoint on the validation images",
    "test": "evaluate a checkpoint on the test images",
    "predict": "write a checkpoint's predictions for the test images, or for new photos, as CSV",
    "compare": "train every configuration with every seed, and tabulate the results",
    "table": "print the table of finished runs from their results.csv",
    "report": "write a page that shows what runs have learnt",
    "export": "export a checkpoint's student for use elsewhere, with a model card",
    "cache": "list or delete recorded outputs of teachers",
    "configs": "list the configurations that come with ndkd, or print one",
}


def main(arguments: list[str] | None = None) -> int:
    """Run ``ndkd`` with these arguments (by default the process's own); the exit status.

    A mistake in the input is one line and status 2; Ctrl-C is status 130, SIGTERM 143 and SIGHUP 129.
    """
    if arguments is not None:
        sys.argv[1:] = arguments  # other ranks are started with the same, and run folders record it
    arguments = sys.argv[1:]
    rank = next((os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ), "0")
    where = f"rank {rank}: " if rank != "0" else ""
    end_with_parent()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names of files can have any bytes
    with stoppable():
        try:
            return _run(arguments)
        except BaseException as error:  # of any kind: what fails after a signal to stop has failed of it
            if stop.number or isinstance(error, KeyboardInterrupt):
                if not where:
                    print("; ".join(filter(None, ("ndkd: stopped", stop.advice()))), file=sys.stderr)
                return 128 + (stop.number or signal.SIGINT)
            if (message := plain_words(error)) is None or os.environ.get("NDKD_TRACEBACK"):
                raise
    print(f"ndkd: {where}{' '.join(message.split())}", file=sys.stderr)
    return 2


def _run(arguments: list[str]) -> int:
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        commands = "\n".join(f"  {name:<10}{summary}" for name, summary in COMMANDS.items())
        print(__doc__.format(commands=commands), end="")
        return 0
    if command == "--version":
        from ndkd import __version__

        print(f"ndkd {__version__}")
        return 0
    if command not in COMMANDS:
        raise NdkdError(f"unknown command {command!r}; {_nearest(command, COMMANDS, 'ndkd')}")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # one's own package is found, as with python -m; it hides nobody else's
    is_of_photos = any(word.partition("=")[0] == "--images" for word in arguments)
    if command in PARSERS and (command != "predict" or is_of_photos):
        return run_tool(command, arguments[1:])
    return run_training(command, arguments)


def run_training(command: str, arguments: list[str]) -> int:
    """ndkd {command}: {summary}

    usage: ndkd {command} --config FILE [--config FILE …] [--OPTION VALUE …]

      --config FILE                           a YAML file, or the name of a configuration that comes with ndkd (see
                                              ndkd configs); later files override earlier ones
      --ckpt_path last|best|FILE              a checkpoint of the run (default last), or a file; without --config, the
                                              configuration is read from the file's run folder. For fit, only last:
                                              continue the run from its last finished epoch
      --trust PACKAGE                         not for fit: allow the run of FILE to use classes of your own package;
                                              or NDKD_TRUST=PACKAGE, see docs/security.md
      --run_dir DIR                           the run folder; by default runs/ and the names of the config files,
                                              with -seedN for a seed other than 0
      --seed_everything N                     seed for weights, order and augmentation (default 0)
      --print_config                          print the resolved configuration and stop
      --images PATH                           only for predict, with --ckpt_path FILE: classify new photos, in a
                                              folder or one file; see ndkd predict --images --help
      --samples N, --share TERM=FRACTION …, --out DIR     only for diagnose; see docs/diagnose.md

    Every entry of a configuration is also an option, for example:
      --trainer.max_epochs N                  --trainer.accelerator cpu|gpu       --trainer.devices N
      --model.init_args.student.name NAME     --model.init_args.teacher.checkpoint FILE
      --model.init_args.losses.nd.weight X    --data.init_args.batch_size N
      --teacher_cache DIR                     record the teacher's outputs in DIR, or reuse those recorded there
      --class_means.augment true              --class_means.cache_dir DIR         --class_means.file FILE

    All options: ndkd {command} --help-all; those of one class: ndkd {command} --model.help DistillationModule
    """
    if {"-h", "--help"} & set(arguments):
        print((inspect.getdoc(run_training) or "").format(command=command, summary=COMMANDS[command]))
        return 0
    from ndkd.configuration.checks import check_configs, check_option

    configs = values_of(CONFIG, arguments)
    check_configs(configs, any(a == "--model" or a.startswith(("--model=", "--model.class_path")) for a in arguments))
    for option in arguments:
        if option not in configs:
            check_option(option)
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    if command == "diagnose":
        return importlib.import_module("ndkd.commands.diagnose").diagnose(arguments[1:])
    from ndkd.commands.training import run_command

    return run_command(arguments)


def _nearest(name: str, known: Iterable[str], command: str) -> str:
    found = suggestion(name, list(known))
    return f"{found}{'' if found.endswith('?') else '.'} See {command} --help"


class OneLineParser(argparse.ArgumentParser):
    """Mistakes are ``NdkdError``, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise NdkdError(f"{message}; see {self.prog} --help")


def run_tool(command: str, arguments: list[str]) -> int:
    """Run a command that is a plain function, such as ``ndkd.commands.compare.compare``; the exit status."""
    parser = OneLineParser(f"ndkd {command}", description=COMMANDS[command], allow_abbrev=False)
    parser.epilog = EPILOGS.get(command)
    PARSERS[command](parser.add_argument)
    more = {}
    if command == "compare" and "--" in arguments:
        cut = arguments.index("--")
        arguments, more = arguments[:cut], {"fit_options": arguments[cut + 1 :]}
    known = parser._option_string_actions
    names = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    for name in names:
        if name not in known:
            raise NdkdError(f"there is no option {name}; {_nearest(name, known, f'ndkd {command}')}")
        adds_up = known[name].nargs is None and isinstance(known[name].default, list)
        if names.count(name) > 1 and not adds_up:  # only the last would count
            raise NdkdError(f"{name} is given {names.count(name)} times; give it once")
    try:
        options = vars(parser.parse_args(["--help"] if {"-h", "--help"} & set(arguments) else arguments))
    except SystemExit:  # after its help
        return 0
    function = getattr(importlib.import_module(f"ndkd.commands.{command}"), command)
    return function(**options, **more) or 0
