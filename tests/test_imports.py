"""The house rules: dependencies point one way, Hydra stays at the door, public names are documented."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "odc_lightning"
FILES = sorted(SRC.rglob("*.py"))

# Each room may use those before it (and itself).
LEVELS = [
    {"console"},
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
    """(module, names) of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


def test_every_room_has_its_level():
    assert {room(path) for path in FILES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_dependencies_point_one_way(path):
    if room(path) == "__init__":
        return
    for module, _ in imports(path):
        if module.startswith("odc_lightning."):
            used = module.split(".")[1]
            assert LEVEL[used] <= LEVEL[room(path)], f"{path.name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_libraries_stay_in_their_rooms(path):
    packages = {module.split(".")[0] for module, _ in imports(path)}
    if room(path) not in ("app", "tasks"):
        assert not packages & {"hydra", "omegaconf"}
    if room(path) in ("memory", "clustering", "objective", "nn"):
        assert "pytorch_lightning" not in packages
    if room(path) == "report":
        assert not packages & {"torch", "torchvision", "pytorch_lightning"}
    if room(path) == "app":
        assert not packages & {"torch", "pytorch_lightning", "wandb", "faiss", "matplotlib"}, "--help must be quick"


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
