"""Private attributes of other libraries are used in `cdpo_lightning/compat.py` alone."""

import ast
import enum
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import cdpo_lightning
from cdpo_lightning import compat

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for folder in ("cdpo_lightning", "hydra_plugins") for path in (ROOT / folder).rglob("*.py"))
DOCUMENTED = {"os._exit"}  # has an underscore, but is in the manual of Python


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier() and name.startswith("_") and not name.startswith("__") and name != "_"


def own_names(tree: ast.AST) -> set[str]:
    """Private names that the classes and functions of one file define: `def _x`, `_x = ...` in a class, `self._x = ...`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in ("self", "cls"):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def private_uses(tree: ast.AST, everywhere: set[str]) -> Iterator[str]:
    """Private names of others: used as an attribute or as a string, or imported. `everywhere`: the names that are ours."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            on_self = ast.unparse(node.value) in ("self", "cls", "super()")
            if node.attr not in (everywhere if on_self else own):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr", "vars"):
            yield from (ast.unparse(node) for part in node.args if isinstance(part, ast.Constant) and is_private(part.value))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            parts = [part for name in (module, *(alias.name for alias in node.names)) for part in name.split(".")]
            if not module.startswith("cdpo_lightning") and any(is_private(part) for part in parts):
                yield ast.unparse(node)


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_no_private_attribute_of_a_foreign_object_outside_compat(trees: dict[str, ast.AST]) -> None:
    everywhere = set().union(*map(own_names, trees.values())) | compat.OVERRIDDEN
    faults = [
        f"{name}: {use}; move it to cdpo_lightning/compat.py"
        for name, tree in trees.items()
        if name != "cdpo_lightning/compat.py"
        for use in private_uses(tree, everywhere)
        if use not in DOCUMENTED
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("x._y", 1),
        ("f(x)._y.z", 1),
        ("getattr(x, '_y', None)", 1),
        ("from torch._functorch import config", 1),
        ("from torch import _VF", 1),
        ("import torch._dynamo", 1),
        ("self._y", 1),
        ("class A:\n  def f(self, other):\n    self._y = other._y", 0),
        ("class A:\n  _y = 1\n  def f(self, other):\n    return other._y, x.__class__", 0),
        ("from cdpo_lightning.errors import _y", 0),
    ],
)
def test_the_rule_detects_private_names_and_spares_ours(code: str, count: int) -> None:
    tree = ast.parse(code)
    assert len(list(private_uses(tree, own_names(tree)))) == count


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages(cdpo_lightning.__path__, "cdpo_lightning.") if not m.name.endswith("__main__")]


@pytest.mark.slow
def test_overridden_private_methods_are_documented() -> None:
    """Of every class of the package: private methods that a base class from elsewhere has, too."""
    overridden = set()
    for name in modules():
        for _, kind in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            foreign = [base for base in kind.__mro__[1:] if not base.__module__.startswith("cdpo_lightning")]
            own = {key for key, value in vars(kind).items() if is_private(key) and inspect.isfunction(value)}
            if kind.__module__ == name and not issubclass(kind, enum.Enum):
                overridden |= {key for key in own if any(key in vars(base) for base in foreign)}
    assert overridden <= compat.OVERRIDDEN, "list them in compat.py, with the reason"
    assert all(f"`{name}`" in str(compat.__doc__) for name in compat.OVERRIDDEN)
