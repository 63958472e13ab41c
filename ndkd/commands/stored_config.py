"""The configuration of a run, where a command names one of its checkpoints and nothing else."""

from pathlib import Path

import yaml

from ndkd.configuration.arguments import values_of, with_found_configs, with_nulls, with_whole_names, without_option
from ndkd.configuration.overlays import CONFIG, with_merged_losses
from ndkd.configuration.published import with_published
from ndkd.errors import NdkdError, suggestion
from ndkd.models.checkpoint_files import hub_file
from ndkd.runs import Run
from ndkd.trust import Trust


def in_full(arguments: list[str]) -> list[str]:
    """The words of a command with the files, entries and loss terms that they stand for."""
    given = with_stored_config(with_found_configs(with_whole_names(arguments)))
    return with_merged_losses(with_nulls(with_published(given)))


def with_stored_config(arguments: list[str]) -> list[str]:
    """Where a checkpoint file is given and no configuration, take the one in its run folder, if it may be trusted."""
    command, *options = arguments
    trusted, checkpoint = values_of(("--trust",), options), values_of(("--ckpt_path",), options)
    if command != "fit":
        arguments = [command, *(options := without_option("--trust", options))]
    if values_of(CONFIG, options):
        return arguments
    if command == "fit" or not checkpoint:
        if any(option.startswith(("--help", "--model", "--data", "--print_config")) for option in options):
            return arguments
        said = _what_was_meant(options)
        raise NdkdError(f"no configuration: {said}{' See' if said.endswith('?') else '; see'} ndkd {command} --help")
    run = Run.of_checkpoint(checkpoint[-1])
    if not hub_file(checkpoint[-1]) and not Path(checkpoint[-1]).is_file():
        raise NdkdError(f"checkpoint {checkpoint[-1]} does not exist; correct --ckpt_path")
    if run is None:
        raise NdkdError(f"checkpoint {checkpoint[-1]} is not in a run folder: give its --config FILE too")
    config = run.read_config()
    if isinstance(config.get("trainer"), dict):
        config["trainer"]["logger"] = False  # what is measured afterwards is printed
    Trust(trusted).check_config(config, str(run.config))
    # itself, not its file, which might be another by the time it is parsed
    text = yaml.safe_dump(config, default_flow_style=True, sort_keys=False, width=float("inf"))
    return [command, "--config", text, "--run_dir", str(run.path), *options]


def _what_was_meant(options: list[str]) -> str:
    """What to do, by the words that are given in place of a configuration."""
    if options and options[-1] in CONFIG:
        return f"{options[-1]} has no value; give it the name of a file"
    if options and not options[0].startswith("-"):
        return f"give it as --config {options[0]}"
    for option in options:
        name = option.partition("=")[0]
        hint = suggestion(name, ["--config", "--ckpt_path"])
        if name.startswith("-") and hint.startswith("did you mean"):
            return f"there is no option {name}; {hint}"
    return "give --config FILE"
