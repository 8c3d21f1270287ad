"""The direction of imports: a package imports only packages that stand above it in ORDER, and no file is in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import bigcircuit

ROOT = Path(bigcircuit.__file__).parent
ORDER = (
    "errors seeding config distributed io runtime model data ablation gates forward metrics circuit attribution train memory "
    "results report evaluation export recover convert sweep planted check prune library cli __main__"
).split()
"""Packages and modules of the root, each above those that may import it."""
TABLES = ("model.granularity", "ablation.kinds", "gates.parametrisation", "metrics.registry")
"""Plain data that any file may import, because they import none of ours but each other and `errors`, and no torch."""
LARGEST_FILE, IN_ROOT = 400, 6
TESTS = Path(__file__).parent
BESIDE_PACKAGES = ("helpers", "benchmarks", "configs", "docker", "docs", "examples", "fuzz", "scripts")
"""Folders of tests of other folders of the repository, and what several test files share."""
TOPICS = (
    "ablation/test_runs.py",
    "circuit/test_by_hooks.py",
    "distributed/test_hosts.py",
    "distributed/test_slurm.py",
    "model/test_siblings.py",
    "report/test_accessibility.py",
    "train/test_mixture_constants.py",
)
"""Test files of more than one module. Those of `prune`, `check` and `cli`, which are no packages, are named by topic too."""


def modules() -> dict[str, Path]:
    """Dotted name below `bigcircuit` -> file; a package by its own name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Our own modules that a file imports, wherever in it, those for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import in line {node.lineno}"
            candidates = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        elif isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        else:
            continue
        for candidate in candidates:
            short = candidate.removeprefix("bigcircuit").lstrip(".")
            if candidate.startswith("bigcircuit") and short in known and short not in ("", name):
                yield short


def graph() -> dict[str, set[str]]:
    """Module -> modules that it imports. The lazily loaded names of the package itself are left out."""
    known = modules()
    return {name: set(imports(name, path, known)) for name, path in known.items() if name}


def test_no_package_imports_one_that_stands_below_it():
    upward = [
        f"{name} imports {other}"
        for name, others in graph().items()
        for other in others
        if other not in TABLES and ORDER.index(name.split(".")[0]) < ORDER.index(other.split(".")[0])
    ]
    assert not upward, upward


def test_no_two_files_import_each_other_along_any_path():
    within = {name: {o for o in others if not name.startswith(f"{o}.")} for name, others in graph().items()}
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from error


def test_tables_import_nothing_but_each_other():
    found = graph()
    assert {
        table: found[table] - {"errors", *TABLES, *(t.split(".")[0] for t in TABLES)} for table in TABLES
    } == dict.fromkeys(TABLES, set())


def test_no_file_is_too_long_and_the_root_is_small():
    long = {
        name: lines for name, path in modules().items() if (lines := len(path.read_text().splitlines())) > LARGEST_FILE
    }
    assert not long
    beside = [path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"]
    assert len(beside) <= IN_ROOT, beside


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it; of `from a import b` both `a` and `a.b`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_test_module_imports_another_and_helpers_import_helpers_only():
    wrong = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in sorted(TESTS.rglob("*.py"))
        for name in sorted(imported_modules(path))
        if name.startswith("tests.") and name.split(".")[1] not in ("helpers", *({"fuzz"} & {path.parent.name}))
    ]
    assert not wrong, wrong


def test_folders_and_files_of_tests_mirror_the_package():
    files = [path.relative_to(TESTS) for path in sorted(TESTS.rglob("test_*.py"))]
    folders = {path.parts[0] for path in files if len(path.parts) > 1} - set(BESIDE_PACKAGES)
    assert all((ROOT / name).is_dir() or (ROOT / f"{name}.py").exists() for name in folders), folders
    known, strangers = modules(), []
    for path in files:
        mirrored = ".".join(path.with_name(path.name.removeprefix("test_")).with_suffix("").parts)
        if (ROOT / path.parts[0]).is_dir() and str(path) not in TOPICS and mirrored not in known:
            strangers.append(str(path))
    assert not strangers, strangers


SAME_IN_EVERY_ENTRY = set(
    "build draw_pair draw_pairs COLUMNS FRAMES NAME RULE IF_EMPTY recognises read TO SUFFIX write draw open_shares decided "
    "DESCRIPTION LOADS_IN LOADER prepare".split()
)
"""Names that every file of a table defines: builders, formats of `convert` and `export`, implementations of parametrisations."""


def test_a_public_name_has_one_meaning():
    homes: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            for name in defined(node):
                if not name.startswith("_") and name not in SAME_IN_EVERY_ENTRY:
                    homes.setdefault(name, []).append(module)
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert not twice, twice


def defined(node: ast.stmt) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def wide_tuples() -> set[str]:
    """Names of our NamedTuples with more than five fields."""
    classes = [
        n for path in ROOT.rglob("*.py") for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)
    ]
    return {
        one.name
        for one in classes
        if any(isinstance(base, ast.Name) and base.id == "NamedTuple" for base in one.bases)
        and sum(isinstance(node, ast.AnnAssign) for node in one.body) > 5
    }


def test_named_tuples_of_many_fields_are_built_by_keyword():
    wide, found = wide_tuples(), []
    assert "Batch" in wide and "Corpus" not in wide
    for path in [*ROOT.rglob("*.py"), *TESTS.rglob("*.py"), *(TESTS.parent / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and node.args
                and getattr(node.func, "id", getattr(node.func, "attr", None)) in wide
            ):
                found.append(f"{path.relative_to(TESTS.parent)}:{node.lineno}")
    assert not found, found
