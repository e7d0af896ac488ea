"""Where tests stand: beside the package's folders, apart from each other."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
APART = {"families", "real", "backbones", "builders"}


def test_no_two_files_of_tests_have_one_name():
    """They are imported by it, backbones, benchmarks and the study too: of two, one would be taken for the other."""
    root = TESTS.parent
    files = [
        *root.glob("tests/**/*.py"),
        *root.glob("backbones/*.py"),
        *root.glob("benchmarks/*.py"),
        *root.glob("study/*.py"),
    ]
    names = [path.stem for path in files if path.name != "conftest.py"]
    assert len(set(names)) == len(names)


def test_every_folder_of_tests_is_one_of_the_package():
    """But for every architecture, real models, scripts and what builds."""
    package = {path.name for path in (TESTS.parent / "src/lingualift").iterdir() if path.is_dir()}
    files = [path.relative_to(TESTS) for path in TESTS.rglob("*.py")]
    assert {path.parts[0] for path in files if len(path.parts) > 1} - package == APART
    assert [path for path in files if len(path.parts) > 2] == []


def imported(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (name.name for name in node.names)


def test_no_test_imports_another():
    tests = {path.stem for path in TESTS.rglob("test_*.py")}
    assert len(tests) > 100
    found = {str(path): tests & set(imported(path)) for path in TESTS.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {}
