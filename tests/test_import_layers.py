"""The rooms of the package depend on each other in one direction only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sklearn_dualif

PACKAGE = Path(sklearn_dualif.__file__).parent
TESTS = Path(__file__).parent

# Ground floor first: a room imports from those before it. Models give their rows as features, so
# that kernels come before them.
ROOMS = (
    "exceptions",
    "losses",
    "linalg",
    "sketching",
    "kernels",
    "models",
    "curvature",
    "objectives",
    "influence",
    "_validation",
    "_delegation",
    "_fitting",
    "_refitting",
    "_trimming",
    "_estimator",
    "_members",
    "_ensemble",
    "cleaning",
    "metrics",
    "inspection",
    "cli",
    "__main__",
    "__init__",
)

# Rooms that know neither models nor each other's subject.
FOUNDATIONS = ("losses", "linalg", "sketching")

MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path):
    """Return the room that a module of the package is in."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported_rooms(path):
    """Yield (room, line) of everything that a module imports from the package, at any depth."""
    parents = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
            targets = [names[1:] or ["__init__"] for names in targets if names[0] == PACKAGE.name]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*parents[: len(parents) - (node.level - 1)], *_split(node.module)]
            targets = [base or [alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and _split(node.module)[:1] == [PACKAGE.name]:
            base = _split(node.module)[1:]
            targets = [base or [alias.name] for alias in node.names]
        else:
            continue
        for names in targets:
            # A name that is no module comes from the package's own __init__.
            yield (names[0] if names[0] in ROOMS else "__init__"), node.lineno


def _split(module):
    return module.split(".") if module else []


def test_the_order_names_every_room():
    assert {room_of(path) for path in MODULES} <= set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_before_its_own(path):
    own = room_of(path)
    allowed = set(ROOMS[: ROOMS.index(own) + 1])
    if own in FOUNDATIONS:
        allowed = {"exceptions", own}
    wrong = [(room, line) for room, line in imported_rooms(path) if room not in allowed]
    assert not wrong, f"{path.relative_to(PACKAGE)} imports {wrong}"


def test_the_checker_sees_imports():
    assert ("_estimator", 8) in imported_rooms(PACKAGE / "__init__.py")
    seen = {room for path in MODULES for room, _ in imported_rooms(path)}
    assert {"exceptions", "losses", "kernels", "models", "influence"} <= seen


@pytest.mark.parametrize("name", ["cases.py", "references.py"])
def test_the_oracles_are_independent_of_the_package(name):
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    modules = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not [module for module in modules if module.split(".")[0] == PACKAGE.name]
