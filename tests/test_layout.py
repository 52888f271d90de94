"""The house's rules: imports go downwards, nothing is unpickled, files and functions stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("util/*.py"), *ROOT.glob("benchmarks/*.py")])
MAX_LINES = {"models_mimae.py": 400}  # the paper in one file
MAX_FUNCTION = {"main": 65, "get_args_parser": 65, "_add_method_flags": 125}  # lists


def level(path: Path) -> int:
    """0 util, 1 engines and models, 2 mains, 3 what starts mains."""
    if path.parent != ROOT:
        return 0 if path.parent.name == "util" else 3
    return {"engine": 1, "models": 1, "main": 2}.get(path.stem.split("_")[0], 3)


def imports(path: Path) -> set[str]:
    """Files of this project that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    candidates = {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {file for file in candidates if file.exists()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_go_downwards(path):
    for imported in imports(path):
        assert level(imported) <= level(path), f"{path.name} imports {imported.name}"
        if path.name.startswith("main_"):
            assert not imported.name.startswith("main_"), f"{path.name} imports {imported.name}"
        if path.name.startswith("engine_"):
            assert not imported.name.startswith(("models_", "engine_")), imported.name
        if path.name.startswith("models_"):
            assert not imported.name.startswith("engine_"), imported.name


def test_the_levels_are_what_they_seem():
    names = {path.name: level(path) for path in FILES}
    assert names["args.py"] == 0 and names["models_mimae.py"] == names["engine_pretrain.py"] == 1
    assert names["main_pretrain.py"] == 2
    assert ROOT / "util" / "args.py" in imports(ROOT / "models_mimae.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_unpickled(path):
    source = path.read_text()
    assert not re.search(r"weights_only\s*=\s*False", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("pickle.load", "pickle.loads", "eval", "exec"), called
            if called == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_and_functions_stay_short(path):
    source = path.read_text()
    lines = source.splitlines()
    assert len(lines) <= MAX_LINES.get(path.name, 400)
    assert max(map(len, lines), default=0) <= 100
    tree = ast.parse(source)
    assert not lines or ast.get_docstring(tree), "no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION.get(node.name, 50), f"{node.name}: {length} lines"
