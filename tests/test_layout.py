"""Rules about the source itself: size, and where Ray may stand."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raydiff"
CEILING = 400
RAY_FILES = {
    f"raydiff/runtime/{name}.py"
    for name in ("cluster", "ray_crew", "ray_pretraining", "actors", "join", "remote", "pool")
}
ACTORS = "raydiff/runtime/actors.py"
SOURCES = sorted(path for name in ("raydiff", "tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def decorators(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from (ast.unparse(decorator) for decorator in node.decorator_list)


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sources_are_found() -> None:
    assert {ACTORS, "raydiff/config.py", "tests/test_layout.py"} <= {name(path) for path in SOURCES}


def test_no_file_is_longer_than_the_ceiling() -> None:
    long = {name(path): count for path in SOURCES if (count := len(path.read_text().splitlines())) > CEILING}
    assert not long


def test_ray_is_imported_in_few_files_only() -> None:
    users = {name(path) for path in PACKAGE.rglob("*.py") if "ray" in imported(ast.parse(path.read_text()))}
    assert users == RAY_FILES


def test_actors_are_made_in_one_file_only() -> None:
    makers = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if any(text.startswith("ray.remote") for text in decorators(tree)) or "ray.remote" in called:
            makers.add(name(path))
    assert makers == {ACTORS}


def test_everything_else_imports_without_ray() -> None:
    modules = [
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in sorted(PACKAGE.rglob("*.py"))
        if name(path) not in RAY_FILES
    ]
    assert len(modules) > 40
    code = f"""
import importlib, importlib.abc, sys

class NoRay(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "ray" or name.startswith("ray."):
            raise ImportError("Ray is not here")

sys.meta_path.insert(0, NoRay())
for module in {modules!r}:
    importlib.import_module(module)
assert "ray" not in sys.modules
"""
    run(code)


@pytest.mark.parametrize("module", ["raydiff.config", "raydiff.presets", "raydiff.cli"])
def test_what_answers_at_once_does_not_import_torch(module: str) -> None:
    assert run(f"import sys, {module}; print('torch' in sys.modules)").strip() == "False"
