"""What keeps the code readable: short files, short functions, few parameters, no import circles."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILE, FUNCTION, PARAMETERS, COLUMNS = 400, 40, 8, 100
SUFFIXES = {".py", ".md", ".c", ".h", ".cu", ".cuh", ".sh", ".toml", ".sbatch"}
FREE = {"LICENSE"}


def tracked(*suffixes: str) -> list[Path]:
    """Files of the project; those of the working tree where it is no repository."""
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\n")
        files = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("mpidl", "kernels", "tests", "scripts", "docs")
        files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return [path for path in files if path.suffix in suffixes and path.is_file()]


PYTHON = tracked(".py")


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of the body, without the docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([arg for arg in args if arg.arg not in ("self", "cls")])


def name(path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PYTHON}
    assert {path: lines for path, lines in long.items() if lines > FILE} == {}


def test_functions_are_short() -> None:
    found = {
        name(path, node): code_lines(node)
        for path in PYTHON
        for node in functions(path)
        if code_lines(node) > FUNCTION
    }
    assert found == {}


def test_functions_have_few_parameters() -> None:
    """Of the backend the table of kernels is the rule: a kernel has as many arrays as it needs."""
    found = {
        name(path, node): parameters(node)
        for path in PYTHON
        if path.relative_to(ROOT).parts[0] in ("mpidl", "scripts")
        and path.relative_to(ROOT).parts[1] != "backend"
        for node in functions(path)
        if parameters(node) > PARAMETERS
    }
    assert found == {}


def test_lines_have_at_most_100_columns() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked(*SUFFIXES)
        if path.name not in FREE
        for number, line in enumerate(path.read_text().splitlines(), 1)
        # rows of tables cannot be broken, and what linters are told is no text
        if len(line.partition("  # type: ")[0]) > COLUMNS and not line.startswith("|")
    ]
    assert found == []


def test_no_module_imports_itself_through_others() -> None:
    """Imports at the top of modules; those within functions and for type checkers do not run."""
    graph = {module_name(path): set(imports(path)) for path in PYTHON if "mpidl" in path.parts}
    graph = {
        module: {other for other in found if other in graph} for module, found in graph.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module in done:
            return
        for other in sorted(graph[module]):
            visit(other, (*trail, module))
        done.add(module)

    for module in sorted(graph):
        visit(module, ())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Modules that are imported when this one is; packages whose names alone are used count too."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [each for each in inner if is_module(each)]
            yield from modules
            if len(modules) < len(inner):
                yield node.module


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or path.joinpath("__init__.py").is_file()
