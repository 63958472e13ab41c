"""Every shipped configuration is built and takes a step; README's commands are real."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from command import REPOSITORY, ndkd

from ndkd.runs import Run

CONFIGS = sorted(file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "configs").rglob("*.yaml"))
METHODS = sorted((REPOSITORY / "configs" / "digits").glob("*++.yaml"))


@pytest.mark.parametrize("config", CONFIGS)
def test_config_takes_a_step(config, workplace, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    configs = ["configs/digits/student.yaml", config] if config.startswith("configs/loggers/") else [config]
    options = [part for name in configs for part in ("--config", name)]
    status, _, err = ndkd("fit", *options, "--trainer.fast_dev_run=true", "--run_dir", "dev")
    assert status == 0, err
    assert not Path("dev/config.yaml").exists()


def resolved(config, *options):
    _, out, _ = ndkd("fit", "--config", config, *options, "--print_config")
    return yaml.safe_load(out)


def test_digits_configs_differ_in_teacher_and_losses_alone(workplace):
    student = resolved("configs/digits/student.yaml")
    for file in METHODS:
        config = resolved(f"configs/digits/{file.name}")
        assert "nd" in config["model"]["init_args"]["losses"]
        for key in ("teacher", "losses", "student"):
            config["model"]["init_args"][key] = student["model"]["init_args"][key]
        assert config == student, file.name


def test_kd_is_kdpp_with_nd_at_zero(workplace):
    plain, plus = (resolved(f"configs/digits/{name}.yaml")["model"]["init_args"] for name in ("kd", "kd++"))
    del plus["losses"]["nd"]
    assert plain == plus


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (REPOSITORY / "README.md").read_text(), flags=re.DOTALL)


def readme_commands():
    lines = "\n".join(readme_blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [command for command in commands if command.startswith("ndkd ")]


def test_readme_commands_run(workplace, monkeypatch):
    """In README's order; training is cut to one epoch of 40 images."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    commands = readme_commands()
    assert len(commands) >= 4
    assert "ndkd fit --config configs/digits/kd++.yaml" in commands
    for command in dict.fromkeys(commands):
        arguments = shlex.split(command)[1:]
        if arguments[0] == "fit" and "--help" not in arguments:
            arguments += ["--trainer.max_epochs=1", "--data.init_args.train_size=40", "--trainer.limit_test_batches=2"]
            if "--ckpt_path" in arguments:
                arguments += ["--trainer.max_epochs=2"]
            elif command == "ndkd fit --config configs/digits/teacher.yaml":
                continue  # done by the fixture
        status, _, err = ndkd(*arguments)
        assert status == 0, f"{command}: {err}"
    assert Run("runs/digits/kd++").is_used


def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = readme_blocks("python")
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_readme_yaml_is_the_shipped_one():
    shipped = yaml.safe_load((REPOSITORY / "configs/digits/kd++.yaml").read_text())["model"]["init_args"]
    shown = yaml.safe_load(readme_blocks("yaml")[0])["model"]["init_args"]
    assert shown == {name: shipped[name] for name in shown}
