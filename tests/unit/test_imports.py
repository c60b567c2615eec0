"""Which package may import which: common <- {client, server} <- simulations <- tests.

Inside server and simulations packages are layers as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "client", "server", "simulations")
ALLOWED = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": {"common", "client", "server", "simulations"},
}
LAYERS = {
    "server": (
        ("model",),
        ("exchange",),
        ("records", "strategies"),
        ("checkpoints", "deployment"),
        ("rounds",),
    ),
    "simulations": (
        ("settings", "display", "results", "engines"),
        ("emulation",),
        ("paper", "pretraining", "planner", "comparison", "throughput", "bench"),
    ),
}
"""Packages from the bottom up: each imports lower ones only, none beside it. Single modules are no
layer."""

KNOW_FLOWER = {
    "common/messages.py",
    "client/app.py",
    "client/effort.py",
    "client/received_model.py",
    "client/rounds.py",
    "client/state.py",
    "client/supernode.py",
    "client/workload.py",
}
"""The modules of common/ and client/ that may import Flower; all of the algorithms may not."""

EXTRAS = {
    "brevitas",
    "datasets",
    "dp_accounting",
    "flwr_datasets",
    "matplotlib",
    "openfl",
    "pandas",
    "pyarrow",
    "ray",
    "sklearn",
    "tensorboard",
    "torchao",
}


def _modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which package they cross"
            assert node.module is not None
            yield node.module


def _top_level_imports(tree: ast.Module) -> Iterator[str]:
    """Full names of what importing the module imports: not in functions, not for type checkers."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node)
        waiting.extend(ast.iter_child_nodes(node))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages_go_one_way(package: str) -> None:
    assert _modules(package)
    crossing = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(package)
        for name in _imports(_parse(path))
        if name.split(".")[0] in {*PACKAGES, "tests"} - ALLOWED[package]
    }
    assert not crossing


@pytest.mark.parametrize("package", LAYERS)
def test_packages_inside_import_only_lower_ones(package: str) -> None:
    layers = LAYERS[package]
    found = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert found == {name for layer in layers for name in layer}
    rank = {name: index for index, layer in enumerate(layers) for name in layer}
    crossing = {
        f"{path.relative_to(ROOT)} imports {name}"
        for own in rank
        for path in _modules(f"{package}/{own}")
        for name in _imports(_parse(path))
        for top, _, rest in [name.partition(".")]
        for other in [rest.split(".")[0]]
        if top == package and other in rank and other != own and rank[other] >= rank[own]
    }
    assert not crossing


@pytest.mark.parametrize("package", ["common", "client"])
def test_only_the_messages_and_the_app_know_flower(package: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in _modules(package)
        if any(name.split(".")[0] == "flwr" for name in _imports(_parse(path)))
    }
    assert found <= KNOW_FLOWER


@pytest.mark.parametrize("package", PACKAGES)
def test_extras_are_imported_where_they_are_needed(package: str) -> None:
    """A device installs the core alone: importing a module must not need an extra."""
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _modules(package)
        for name in _top_level_imports(_parse(path))
        if name.split(".")[0] in EXTRAS
    }
    assert not found
