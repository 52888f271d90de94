"""The house's rules: imports go downwards, nothing is unpickled, files and functions stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UTIL = ROOT / "util"
CODE = ("*.py", "benchmarks/*.py", "reproduction/*.py", "util/**/*.py")
FILES = sorted(path for pattern in CODE for path in ROOT.glob(pattern))
MAX_LINES = {"models_mimae.py": 400}  # the paper in one file
MAX_FUNCTION = {"main": 65, "get_args_parser": 65, "_add_method_flags": 125}  # lists
MAY_IMPORT = {  # rooms of util, besides themselves and the loose files
    "data": {"cluster"},
    "cluster": set(),
    "training": {"cluster", "data"},
    "evaluation": {"cluster", "data", "training"},
}


def level(path: Path) -> int:
    """0 util, 1 engines and models, 2 mains, 3 what starts mains."""
    if path.is_relative_to(UTIL):
        return 0
    return {"engine": 1, "models": 1, "main": 2}.get(path.stem.split("_")[0], 3)


def room(path: Path) -> str:
    """The folder of a file of util below it; empty for its loose files."""
    return path.parent.name if path.parent.parent == UTIL else ""


def imports(path: Path) -> set[Path]:
    """Files of this project that a file imports, anywhere in it."""
    names = set()
    tree = ast.parse(path.read_text())
    # What stands below `if __name__ == "__main__"` is no import of the module's.
    tree.body = [
        n for n in tree.body if not (isinstance(n, ast.If) and "__name__" in ast.unparse(n))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    candidates = {ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {file for file in candidates if file.exists()}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_go_downwards(path):
    for imported in imports(path):
        assert level(imported) <= level(path), f"{path.name} imports {imported.name}"
        if path.name.startswith("main_"):
            assert not imported.name.startswith("main_"), f"{path.name} imports {imported.name}"
        if path.name.startswith("engine_"):
            assert not imported.name.startswith(("models_", "engine_")), imported.name
        if path.name.startswith("models_"):
            assert not imported.name.startswith("engine_"), imported.name


@pytest.mark.parametrize("path", [file for file in FILES if file.is_relative_to(UTIL)], ids=named)
def test_rooms_know_of_those_below_them(path):
    """data and cluster know nothing of training and evaluation; nobody imports by a name."""
    if room(path):
        others = {room(imported) for imported in imports(path)} - {"", room(path)}
        assert others <= MAY_IMPORT[room(path)]
    assert "import_module" not in path.read_text() and "__import__" not in path.read_text()


def test_the_rooms_imports_make_no_ring():
    def reached(path: Path, seen: tuple = ()) -> None:
        assert path not in seen, " -> ".join(map(named, (*seen, path)))
        if path not in done:
            for imported in imports(path):
                reached(imported, (*seen, path))
            done.add(path)

    done: set[Path] = set()
    for path in FILES:
        reached(path)


def test_the_levels_are_what_they_seem():
    names = {named(path): level(path) for path in FILES}
    assert names["util/args.py"] == names["util/data/loader.py"] == 0
    assert names["models_mimae.py"] == names["engine_pretrain.py"] == 1
    assert names["main_pretrain.py"] == 2 and names["submitit_launch.py"] == 3
    assert UTIL / "checks.py" in imports(ROOT / "models_mimae.py")
    assert room(UTIL / "data" / "loader.py") == "data" and room(UTIL / "args.py") == ""
    assert {room(path) for path in FILES} == {"", *MAY_IMPORT}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_unpickled(path):
    source = path.read_text()
    assert not re.search(r"weights_only\s*=\s*False", source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("pickle.load", "pickle.loads", "eval", "exec"), called
            if called == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords)


@pytest.mark.parametrize("path", FILES, ids=named)
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
