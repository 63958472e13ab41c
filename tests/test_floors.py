"""A file imports only from lower floors, and heavy packages only where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ndkd"
FILES = {
    ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}

# what the files under a name may import: parts of ndkd, and packages that are not of the standard library
BASE = {"ndkd.errors", "ndkd.stopping"}
FLOORS = {
    "ndkd.losses": (set(), {"torch"}),
    "ndkd.models.output": (set(), {"torch"}),
    "ndkd.models": (BASE, {"torch", "torchvision", "timm", "safetensors", "numpy"}),
    "ndkd.seeds": (set(), {"torch", "numpy"}),
    "ndkd.stopping": (set(), set()),
    "ndkd.lock": (BASE, set()),
    "ndkd.runs": ({*BASE, "ndkd.lock", "ndkd.run_checks", "ndkd.stopping"}, {"numpy", "yaml"}),
    "ndkd.run_checks": (BASE, {"numpy"}),
    "ndkd.trust": (BASE, {"torch", "torchvision", "timm", "lightning", "yaml"}),
    "ndkd.data.configured": ({*BASE, "ndkd.data", "ndkd.parser_errors"}, {"torch", "lightning", "jsonargparse"}),
    "ndkd.data": ({*BASE, "ndkd.seeds"}, {"torch", "torchvision", "lightning", "numpy", "sklearn", "PIL", "timm"}),
    "ndkd.distillation": (
        {*BASE, "ndkd.models", "ndkd.rehearsal", "ndkd.runs", "ndkd.seeds"},
        {"torch", "lightning", "torchmetrics"},
    ),
    "ndkd.detection": (
        {*BASE, "ndkd.distillation", "ndkd.models", "ndkd.seeds"},
        {"torch", "torchvision", "pycocotools"},
    ),
    "ndkd.callbacks": (
        {*BASE, "ndkd.runs"},
        {"torch", "torchvision", "lightning", "numpy", "safetensors", "tqdm", "PIL", "yaml"},
    ),
    "ndkd.loggers": ({"ndkd.runs"}, {"lightning", "wandb"}),
    "ndkd.errors": (set(), set()),
    "ndkd.schedules": (set(), {"torch"}),
    "ndkd.memory": (set(), set()),
    "ndkd.parser_errors": (BASE, set()),
    "ndkd.build_errors": ({*BASE, "ndkd.stopping"}, set()),
    "ndkd.configuration": (BASE, {"yaml"}),
    "ndkd.markdown": (set(), set()),
    "ndkd.nulls": (BASE, {"jsonargparse"}),
    "ndkd.rehearsal": (BASE, {"torch"}),
    "ndkd.trainer_options": (BASE, set()),
    "ndkd.compare": (
        {
            *BASE,
            *(f"ndkd.{name}" for name in ("compare_plan", "configuration", "jobs", "runs", "table", "table_figures")),
            *(f"ndkd.{name}" for name in ("lock", "stopping", "tables", "teacher_means")),
        },
        {"yaml"},
    ),
    "ndkd.compare_plan": (
        {*BASE, *(f"ndkd.{name}" for name in ("configuration", "distillation", "jobs", "runs", "training_cli"))},
        {"yaml"},
    ),
    "ndkd.jobs": ({*BASE, "ndkd.runs"}, {"torch", "tqdm"}),
    "ndkd.tables": ({"ndkd.markdown", "ndkd.runs"}, {"pandas", "scipy"}),
    "ndkd.table": ({*BASE, "ndkd.tables"}, {"pandas"}),
    "ndkd.table_figures": ({"ndkd.report_figures", "ndkd.tables"}, {"pandas", "matplotlib"}),
    "ndkd.teacher_means": (
        {*BASE, "ndkd.callbacks.class_means_file", "ndkd.callbacks.class_sums", "ndkd.data", "ndkd.models"},
        {"torch", "tqdm"},
    ),
    "ndkd.analysis": (
        {*BASE, *(f"ndkd.{name}" for name in ("data", "distillation", "losses", "models", "runs", "trust"))},
        {"torch", "lightning", "numpy", "pandas", "sklearn", "matplotlib"},
    ),
    "ndkd.report": (
        {*BASE, "ndkd.models", "ndkd.report_figures", "ndkd.runs"},
        {"torch", "numpy", "pandas", "torchmetrics", "jinja2", "matplotlib"},
    ),
    "ndkd.report_figures": (set(), {"numpy", "pandas", "matplotlib", "sklearn"}),
    "ndkd.export": (
        {*BASE, "ndkd.markdown", "ndkd.lock", "ndkd.models", "ndkd.runs", "ndkd.data", "ndkd.trust"},
        {"torch", "lightning", "safetensors", "onnxruntime", "jinja2", "yaml"},
    ),
    "ndkd.training_cli": ({"ndkd"}, {"torch", "lightning", "jsonargparse", "tqdm", "yaml"}),
    "ndkd.cli": (
        {
            *BASE,
            *(f"ndkd.{name}" for name in ("configuration", "training_cli", "compare", "table", "report", "export")),
        },
        set(),
    ),
    "ndkd.__main__": ({"ndkd.cli"}, set()),
    "ndkd": (set(), set()),
}


def floor_of(module):
    """The longest name in FLOORS that the module lies under."""
    return max((name for name in FLOORS if is_under(module, name)), key=len)


def is_under(module, name):
    return module == name or module.startswith(f"{name}.")


def imports(file):
    """Modules that a file imports, anywhere in it; of a package's own names, the modules that hold them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & FILES.keys()) or {node.module}
    return found


@pytest.mark.parametrize("module", FILES)
def test_imports_only_from_lower_floors(module):
    own = floor_of(module)
    parts, packages = FLOORS[own]
    for imported in imports(FILES[module]):
        if imported.startswith("ndkd"):
            allowed = own != "ndkd" and is_under(imported, own) or any(is_under(imported, part) for part in parts)
            assert allowed or (module, imported) == ("ndkd.cli", "ndkd"), f"{module} imports {imported}"
        elif (package := imported.partition(".")[0]) not in sys.stdlib_module_names:
            assert package in packages, f"{module} imports {package}"


def test_the_module_names_no_concrete_loss():
    text = FILES["ndkd.distillation"].read_text()
    import ndkd.losses

    assert not [name for name in vars(ndkd.losses) if name.lower().endswith("loss") and name in text]


@pytest.mark.parametrize(("module", "heavy"), [("ndkd.cli", "torch"), ("ndkd.losses", "torchvision")])
def test_a_light_module_loads_nothing_heavy(module, heavy):
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
