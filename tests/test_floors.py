"""A file imports only from lower floors, in no circle, and heavy packages only where they are needed."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.command import REPOSITORY

PACKAGE = REPOSITORY / "ndkd"
FILES = {
    ".".join(file.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
# from the ground up; a file may import what lies on its own floor or below
FLOORS = [
    {"ndkd.errors", "ndkd.seeds", "ndkd.stopping", "ndkd.schedules"},
    {"ndkd.configuration", "ndkd.files", "ndkd.lock", "ndkd.losses", "ndkd.models.output"},
    {"ndkd.runs", "ndkd.run_checks", "ndkd.models", "ndkd.data"},
    {"ndkd.distillation", "ndkd.trust"},
    {"ndkd.callbacks", "ndkd.loggers", "ndkd.analysis", "ndkd.classifier"},
    {"ndkd.commands"},
    {"ndkd", "ndkd.cli"},
    {"ndkd.__main__"},
]
# what else than the standard library the files under a name may import
PACKAGES = {
    "ndkd": set(),
    "ndkd.seeds": {"torch", "numpy"},
    "ndkd.schedules": {"torch"},
    "ndkd.configuration": {"yaml"},
    "ndkd.configuration.nulls": {"jsonargparse"},
    "ndkd.losses": {"torch"},
    "ndkd.models.output": {"torch"},
    "ndkd.models": {"torch", "torchvision", "timm", "safetensors", "numpy"},
    "ndkd.models.checkpoint_files": {"huggingface_hub"},
    "ndkd.data": {"torch", "torchvision", "lightning", "numpy", "sklearn", "PIL", "timm"},
    "ndkd.data.image_files": {"numpy", "PIL", "torchvision", "pillow_heif"},
    "ndkd.data.from_config": {"torch", "lightning", "jsonargparse", "numpy", "PIL"},
    "ndkd.runs": {"numpy", "yaml"},
    "ndkd.run_checks": {"numpy"},
    "ndkd.trust": {"torch", "torchvision", "timm", "lightning", "yaml"},
    "ndkd.distillation": {"torch", "lightning", "torchmetrics"},
    "ndkd.distillation.objective": {"torch"},
    "ndkd.distillation.proxy_run": {"torch", "lightning", "tqdm"},
    "ndkd.distillation.shares": set(),
    "ndkd.distillation.recording": {"torch", "numpy"},
    "ndkd.distillation.detection": {"torch", "torchvision"},
    "ndkd.distillation.coco_ap": {"pycocotools"},
    "ndkd.callbacks": {"torch", "torchvision", "lightning", "numpy", "safetensors", "tqdm", "PIL", "yaml"},
    "ndkd.loggers": {"lightning", "wandb", "mlflow"},
    "ndkd.classifier": {"torch", "PIL"},
    "ndkd.analysis": {"torch", "lightning", "numpy", "pandas", "sklearn", "matplotlib"},
    "ndkd.commands": {"torch", "numpy", "pandas", "matplotlib", "tqdm", "yaml", "jinja2", "lightning"},
    "ndkd.commands.compare_differences": {"pandas", "scipy"},
    "ndkd.commands.compare_published": {"pandas", "torch"},
    "ndkd.commands.compare_tables": {"pandas"},
    "ndkd.commands.confidence_sequence": {"numpy"},
    "ndkd.commands.report": {"torch", "numpy", "pandas", "torchmetrics", "jinja2", "matplotlib"},
    "ndkd.commands.report_figures": {"numpy", "pandas", "matplotlib", "sklearn"},
    "ndkd.commands.diagnose_teacher": {"torch", "numpy", "scipy", "torchmetrics"},
    "ndkd.commands.diagnose_page": {"numpy", "pandas", "matplotlib", "jinja2"},
    "ndkd.commands.parsers": set(),
    "ndkd.commands.export": {"torch", "lightning"},
    "ndkd.commands.export_card": {"torch", "jinja2", "yaml"},
    "ndkd.commands.export_formats": {"torch", "safetensors", "onnxruntime"},
    "ndkd.commands.export_int8": {"torch", "lightning", "onnxruntime"},
    "ndkd.commands.export_push": set(),
    "ndkd.commands.library_errors": {"torch", "torchvision", "lightning", "jsonargparse"},
}


def name_above(module, names):
    """The longest of the names that the module lies under."""
    return max((name for name in names if module == name or module.startswith(f"{name}.")), key=len, default=None)


def floor_of(module):
    floors = {name: number for number, names in enumerate(FLOORS) for name in names}
    floors.pop("ndkd") if module != "ndkd" else None
    return floors[name_above(module, floors)]


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
    packages = PACKAGES[name_above(module, PACKAGES)]
    for imported in imports(FILES[module]):
        if imported.partition(".")[0] == "ndkd":
            assert imported in FILES, f"{module} imports {imported}, which is not there"
            assert floor_of(imported) <= floor_of(module), f"{module} imports {imported} from a higher floor"
        elif (package := imported.partition(".")[0]) not in sys.stdlib_module_names:
            assert package in packages, f"{module} imports {package}"


def test_no_file_imports_itself_in_a_circle():
    graph = {module: {name for name in imports(file) if name in FILES} for module, file in FILES.items()}
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def longest(file):
    """The number of lines of the longest function, without its docstring."""
    lengths = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            lengths[node.name] = node.end_lineno - node.lineno + 1 - len(text.splitlines())
    return max(lengths.values(), default=0)


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_file_has_at_most_300_lines_and_a_function_60(file):
    assert len(file.read_text().splitlines()) <= 300
    assert longest(file) <= 60


def test_the_module_names_no_concrete_loss():
    text = FILES["ndkd.distillation.module"].read_text() + FILES["ndkd.distillation.objective"].read_text()
    text = text.partition(">>>")[0] + text.rpartition(">>>")[2]  # but in an example
    import ndkd.losses

    assert not [name for name in vars(ndkd.losses) if name.lower().endswith("loss") and name in text]


@pytest.mark.parametrize(
    ("module", "heavy"), [("ndkd.cli", "torch"), ("ndkd.losses", "torchvision"), ("ndkd.distillation", "lightning")]
)
def test_a_light_module_loads_nothing_heavy(module, heavy):
    code = f"import sys, {module}; sys.exit({heavy!r} in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
