"""The house's rules: imports go downwards, nothing is unpickled, files and functions stay short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("benchmarks", "encoders", "exports", "heads", "reproduction", "tools", "util")
FILES = sorted([*ROOT.glob("*.py"), *(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))])
MAX_LINES = {"models_mimae.py": 400}  # the paper in one file
MAX_FUNCTION = {"main": 60, "get_args_parser": 60}  # one readable page; a list of flags
LEVELS = {  # a file imports what is on its own level or below
    "util": 0, "encoders": 1, "heads": 2, "models": 2, "engine": 2, "exports": 3, "main": 4,
    "tools": 4, "hubconf": 5, "submitit": 5, "reproduction": 5, "reproduce": 6, "benchmarks": 6,
    "demo": 6,
}  # fmt: skip
MAY_IMPORT = {  # rooms of util, besides themselves and the loose files
    "cluster": set(),
    "data": {"cluster"},
    "flags": {"cluster", "data"},
    "weights": {"cluster"},
    "reporting": set(),  # reads files only
    "training": {"cluster", "data", "flags", "reporting", "weights"},
    "evaluation": {"cluster", "data", "reporting", "training", "weights"},
}
BY_NAME = ("import_module", "__import__")  # nobody imports what a reader cannot see


def kind(path: Path) -> str:
    """The room below the root, or the prefix of a file's name in it."""
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem.split("_")[0]


def level(path: Path) -> int:
    return LEVELS[kind(path)]


def room(path: Path) -> str:
    """The room of util in which a file lies; empty for its loose files, and elsewhere."""
    parts = path.relative_to(ROOT).parts
    return parts[1] if parts[0] == "util" and len(parts) > 2 else ""


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
        if kind(path) in ("main", "engine", "tools"):  # none imports another of its own
            assert kind(imported) != kind(path), f"{path.name} imports {imported.name}"
        if kind(path) == "engine":  # it is given its model
            assert kind(imported) == "util", f"{path.name} imports {imported.name}"
        if kind(path) in ("models", "heads", "exports"):
            assert kind(imported) != "engine", f"{path.name} imports {imported.name}"


@pytest.mark.parametrize("path", [file for file in FILES if kind(file) == "util"], ids=named)
def test_rooms_know_of_those_below_them(path):
    """data and cluster know nothing of training and evaluation; util holds no command."""
    if room(path):
        others = {room(imported) for imported in imports(path)} - {"", room(path)}
        assert others <= MAY_IMPORT[room(path)]
    assert 'if __name__ == "__main__"' not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_is_imported_by_a_name(path):
    assert not any(word in path.read_text() for word in BY_NAME)


def test_the_root_shows_what_one_runs():
    # torch.hub looks for hubconf.py there.
    assert len([path for path in ROOT.glob("*.py") if path.stem != "hubconf"]) <= 20


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
    assert names["util/flags/args.py"] == names["util/data/loader.py"] == 0
    assert names["encoders/vit.py"] < names["models_mimae.py"] < names["main_pretrain.py"]
    assert names["main_pretrain.py"] < names["submitit_launch.py"] < names["reproduce.py"]
    assert ROOT / "util" / "checks.py" in imports(ROOT / "models_mimae.py")
    assert room(ROOT / "util" / "data" / "dense" / "coco.py") == "data"
    assert room(ROOT / "util" / "checks.py") == room(ROOT / "encoders" / "vit.py") == ""
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


BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try)


def nesting(node: ast.AST, depth: int = 0) -> int:
    """How deep blocks stand in blocks below a node; an elif is as deep as its if."""
    deepest = depth
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        starts_anew = isinstance(child, ast.FunctionDef | ast.ClassDef | ast.Lambda)
        below = depth + (isinstance(child, BLOCKS) and not is_elif)
        deepest = max(deepest, nesting(child, 0 if starts_anew else below))
    return deepest


@pytest.mark.parametrize("path", FILES, ids=named)
def test_blocks_are_nested_four_deep_at_most(path):
    assert nesting(ast.parse(path.read_text())) <= 4
