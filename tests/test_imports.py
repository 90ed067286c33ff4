"""The house rules: dependencies point one way, Hydra stays at the door, public names are documented."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "odc_lightning"
FILES = sorted(SRC.rglob("*.py"))

# Each room may use those before it (and itself).
LEVELS = [
    {"console", "checks", "nested", "whole_file"},
    {"memory", "clustering", "objective", "nn"},
    {"data", "weights", "evaluation"},
    {"methods"},
    {"report"},
    {"callbacks"},
    {"tasks"},
    {"app"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# What Lightning calls by name explains itself there.
HOOKS = {
    "training_step",
    "forward",
    "setup",
    "configure_optimizers",
    "state_dict",
    "load_state_dict",
    "name",
    "version",
}


def room(path):
    part = path.relative_to(SRC).parts[0]
    return part.removesuffix(".py")


def imports(path):
    """Every imported module, also inside functions; ``from odc_lightning import x`` is odc_lightning.x."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative imports hide where they go"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "odc_lightning")


def test_every_room_has_its_level():
    assert {room(path) for path in FILES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_dependencies_point_one_way(path):
    if room(path) == "__init__":
        return
    for module in imports(path):
        if module.startswith("odc_lightning."):
            used = module.split(".")[1]
            assert LEVEL[used] <= LEVEL[room(path)], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_libraries_stay_in_their_rooms(path):
    packages = {module.split(".")[0] for module in imports(path)}
    if room(path) not in ("app", "tasks"):
        assert not packages & {"hydra", "omegaconf"}
    if room(path) in ("memory", "clustering", "objective", "nn"):
        assert "pytorch_lightning" not in packages
    if room(path) in ("memory", "objective"):
        assert packages <= {*sys.stdlib_module_names, "torch", "numpy", "odc_lightning"}
    if room(path) == "report":
        assert not packages & {"torch", "torchvision", "pytorch_lightning"}
    if room(path) == "app":
        assert not packages & {"torch", "pytorch_lightning", "wandb", "faiss", "matplotlib"}, "--help must be quick"


@pytest.mark.parametrize(
    ("modules", "not_needed"),
    [
        (["memory", "clustering", "objective", "nn"], ["pytorch_lightning", "hydra", "omegaconf", "wandb"]),
        (["app"], ["torch", "pytorch_lightning", "wandb", "faiss", "matplotlib"]),
        (["report"], ["torch", "pytorch_lightning", "hydra"]),
    ],
    ids=lambda names: " ".join(names),
)
def test_libraries_are_not_loaded_by_detours_either(modules, not_needed):
    imported = ", ".join(f"odc_lightning.{module}" for module in modules)
    code = f"import sys, {imported}; print([name for name in {not_needed} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_public_names_are_documented(path):
    tree = ast.parse(path.read_text())
    bare = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            bare += [node.name] if not ast.get_docstring(node) else []
            if isinstance(node, ast.ClassDef):
                bare += [f"{node.name}.{method.name}" for method in node.body if undocumented(method, node)]
    assert bare == []


def undocumented(method, owner):
    if not isinstance(method, ast.FunctionDef) or method.name.startswith(("_", "on_")) or ast.get_docstring(method):
        return False
    return method.name not in HOOKS and not owner.bases  # an override is documented where it is declared
