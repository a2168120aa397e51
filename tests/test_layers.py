"""Imports point down the level table, form no cycle, and only the console prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

PACKAGE = "giraffe_cli"
ROOT = Path(__file__).parent.parent / PACKAGE

# First match wins, so exceptions stand above the folder they are in.
LEVELS = [
    ("__main__", 7),
    ("cli.*", 7),
    ("pipeline", 6),
    ("claim", 5),
    ("evaluating", 5),
    ("preflight", 5),
    ("stages", 5),
    ("telling", 5),
    ("work", 5),
    ("training", 5),
    ("control", 5),
    ("fitting", 5),
    ("tune.*", 5),
    ("train.loop", 4),
    ("train.worker", 4),
    ("merge", 4),
    ("merge_*", 4),
    ("verify", 4),
    ("verify_*", 4),
    ("export.*", 4),
    ("evals.runner", 4),
    ("inference.*", 4),
    ("report.*", 4),
    ("corpus.executors.*", 4),
    ("config", 2),
    ("config.*", 2),
    ("presets", 2),
    ("rope.base", 1),
    ("rope.knobs", 1),
    ("rope.scheme", 1),
    ("rope.strategies.*", 1),
    ("rope.positions.*", 1),
    ("corpus.base", 1),
    ("corpus.unit", 1),
    ("corpus.readers.*", 1),
    ("corpus.pack", 1),
    ("corpus.mix", 1),
    ("corpus.shares", 1),
    ("corpus.duplicates", 1),
    ("corpus.contamination", 1),
    ("evals.base", 1),
    ("evals.measures", 1),
    ("evals.tasks.*", 1),
    ("evals.pairs", 1),
    ("evals.statistics", 1),
    ("evals.prompt", 1),
    ("evals.haystack", 1),
    ("evals.words", 1),
    ("evals.windows", 1),
    ("evals.data_files", 1),
    ("evals.other_text", 1),
    ("evals.needles", 1),
    ("evals.suites", 1),
    ("gates", 1),
    ("errors", 0),
    ("registry", 0),
    ("units", 0),
    ("rundir", 0),
    ("lock", 0),
    ("plain_yaml", 0),
    ("progress", 0),
    ("", 0),
    ("checkpoint", 3),
    ("checkpoint_config", 3),
    ("checkpoint_files", 3),
    ("checkpoint_source", 3),
    ("tensor_stream", 3),
    ("tensor_dtypes", 3),
    ("run_files", 3),
    ("own_folder", 3),
    ("adapter", 3),
    ("updates", 3),
    ("gguf_import", 3),
    ("gguf_header", 3),
    ("gguf_pipelines", 3),
    ("pickle_import", 3),
    ("weights", 3),
    ("plan.*", 3),
    ("rope.*", 3),
    ("corpus.*", 3),
    ("model.*", 3),
    ("train.*", 3),
    ("evals.*", 4),
]
WITHOUT_TORCH = {"torch", "transformers", "peft", "accelerate", "safetensors"}


def level_of(module: str) -> int | None:
    """`rope.base` → 1; None for a module the table does not place."""
    return next((level for pattern, level in LEVELS if fnmatch(module, pattern)), None)


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the package → file; a package is named by its folder, the root by ``."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """`(line, imported module)` for each import of the package, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    yield node.lineno, alias.name.removeprefix(PACKAGE).removeprefix(".")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            if (node.module or "").split(".")[0] == PACKAGE:
                base = (node.module or "").removeprefix(PACKAGE).removeprefix(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}".removeprefix(".")
                    yield node.lineno, inner if inner in known else base


def upward_imports(root: Path) -> list[str]:
    """A sentence for each import that points up and each module without a level."""
    known = modules(root)
    problems = []
    for module, path in known.items():
        is_package = path.name == "__init__.py"
        own = 0 if is_package else level_of(module)  # a package is imported with any of its files
        if own is None:
            problems.append(f"{path}: no level in LEVELS")
            continue
        for line, imported in imports(path, known):
            other = level_of(imported)
            if other is not None and other > own:
                problems.append(
                    f"{path}:{line} (level {own}) imports {PACKAGE}.{imported} (level {other})"
                )
    return problems


def cycle(root: Path) -> list[str]:
    """Modules that import one another in a circle, or an empty list."""
    known = modules(root)
    graph = {name: {target for _, target in imports(path, known)} for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := walk(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_no_import_points_up():
    assert upward_imports(ROOT) == []


def test_no_import_cycle():
    assert cycle(ROOT) == []


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / PACKAGE


def test_a_line_that_points_up_is_named(tmp_path):
    root = write(
        tmp_path,
        {
            "config.py": '"""Knobs."""\n\ndef f():\n    from giraffe_cli.cli import app\n',
            "cli/app.py": "import giraffe_cli.config\n",
            "somewhere.py": "",
        },
    )
    up, unplaced = upward_imports(root)
    assert up == f"{root}/config.py:4 (level 2) imports giraffe_cli.cli.app (level 7)"
    assert unplaced == f"{root}/somewhere.py: no level in LEVELS"


def test_a_cycle_is_named(tmp_path):
    root = write(
        tmp_path,
        {"rope/a.py": "from giraffe_cli.rope import b\n", "rope/b.py": "import giraffe_cli.rope.a"},
    )
    assert cycle(root) == ["rope.a", "rope.b", "rope.a"]


def top_level_names(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, (node.module or "").split(".")[0]


def test_levels_below_three_never_name_torch():
    found = [
        f"{path}:{line} imports {name}"
        for module, path in modules(ROOT).items()
        if (level := level_of(module)) is not None and level < 3
        for line, name in top_level_names(path)
        if name in WITHOUT_TORCH
    ]
    assert found == []


def test_the_probe_that_proves_a_checkpoint_imports_nothing_of_ours():
    names = {name for _, name in top_level_names(ROOT / "verify_probe.py")}
    assert PACKAGE not in names
    assert {"torch", "transformers"} <= names


def test_only_the_console_prints():
    found = [
        f"{path}:{node.lineno}"
        for path in modules(ROOT).values()
        if path != ROOT / "cli" / "console.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert found == []
