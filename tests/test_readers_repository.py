"""A repository is one document, its files in the order of what they need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_readers import read

from giraffe_cli.corpus.base import reader_for
from giraffe_cli.corpus.readers.code_repo import dependencies_first
from giraffe_cli.errors import InvalidInput


def write_files(root: Path, **files: str) -> Path:
    """`{"a__b_py": text}` → `a/b.py`."""
    for name, text in files.items():
        path = root / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def order(source: str, **knobs) -> list[str]:
    headers = re.compile(r"^# (\S+\.\w+)$", re.MULTILINE)
    return [name for d in read(source, **knobs)[0] for name in headers.findall(d.text)]


def test_a_repository_is_one_document_dependencies_first(tmp_path):
    root = write_files(
        tmp_path / "tool",
        a_py="from tool.core import x\nimport json\n",
        src__tool__core_py="from . import util\nfrom .deep.er import y\n",
        src__tool__util_py="z = 1\n",
        src__tool__deep__er_py="y = 1\n",
        tests__test_a_py="import a\n",
        README_md="# tool\n",
        b_md="notes",
    )
    (root / ".git").mkdir()
    write_files(root, node_modules__x_js="no", photo_png="no")
    [document], bad = read(f"repo:{root}")
    assert document.id == "tool"
    assert document.text.startswith("# README.md\n# tool\n\n# src/tool/util.py\nz = 1\n\n# src")
    assert order(f"repo:{root}") == [
        "README.md",
        "src/tool/util.py",
        "src/tool/deep/er.py",
        "src/tool/core.py",
        "a.py",
        "b.md",
        "tests/test_a.py",
    ]
    assert bad.skipped == {"not a text suffix: .png": 1}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a_c": '#include "z.h"\n#include <stdio.h>\n', "z_h": ""}, ["z.h", "a.c"]),
        ({"a_ts": "import { q } from './in/q';", "in__q_ts": "1"}, ["in/q.ts", "a.ts"]),
        ({"a_js": "const q = require('../z/i')", "z__i_js": "1"}, ["a.js", "z/i.js"]),
        ({"src__lib_rs": "pub mod zoo;", "src__zoo_rs": "1"}, ["src/zoo.rs", "src/lib.rs"]),
        ({"src__a_rs": "use crate::b::C;", "src__b_rs": "1"}, ["src/b.rs", "src/a.rs"]),
        ({"A_java": "import org.z.B;", "x__org__z__B_java": "1"}, ["x/org/z/B.java", "A.java"]),
        ({"a_go": 'import "host/m/z"', "z__q_go": "1"}, ["z/q.go", "a.go"]),
        ({"a_rb": "require_relative 'z'", "z_rb": "1"}, ["z.rb", "a.rb"]),
        ({"a_py": "import b", "b_py": "import c", "c_py": "import a"}, ["c.py", "b.py", "a.py"]),
    ],
    ids=["c", "ts", "js-outside", "rust-mod", "rust-use", "java", "go", "ruby", "circle"],
)
def test_a_file_stands_behind_what_it_imports(tmp_path, files, expected):
    files = {name: text or "x" for name, text in files.items()}
    assert order(f"repo:{write_files(tmp_path, **files)}") == expected


IGNORE = """# made by tools
*.tmp.py
!kept.tmp.py
/gen
logs/
inner/out.py
"""


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("a.py", True),
        ("a.tmp.py", False),
        ("inner/a.tmp.py", False),
        ("kept.tmp.py", True),
        ("gen/a.py", False),
        ("inner/gen/a.py", True),
        ("inner/logs/a.py", False),
        ("logs.md", True),
        ("inner/out.py", False),
        ("out.py", True),
        ("vendor/a.py", False),
        ("inner/build/a.py", False),
        ("build.py", True),
        ("a.min.js", False),
        (".hidden/a.py", False),
    ],
)
def test_ignored_vendored_and_built_files_are_left_out(tmp_path, path, taken):
    files = {"README.md": "# r", ".gitignore": IGNORE, path: "x = 1"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    [document], bad = read(f"repo:{tmp_path}")
    assert document.text == "# README.md\n# r\n" + f"# {path}\nx = 1\n" * taken
    by_name = path.startswith(("vendor", "inner/build", "a.min", ".hidden"))
    assert bad.skipped == ({} if taken or by_name else {"named by .gitignore": 1})


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ("/*.md", ["docs/a.md", "docs/deep/y.md", "src/a.py", "src/b/c.py"]),
        ("docs/*.md", ["docs/deep/y.md", "r.md", "src/a.py", "src/b/c.py"]),
        ("/*\n!/src/", ["src/a.py", "src/b/c.py"]),
        ("docs/**", ["r.md", "src/a.py", "src/b/c.py"]),
        ("**/deep", ["docs/a.md", "r.md", "src/a.py", "src/b/c.py"]),
        ("src/**/c.py", ["docs/a.md", "docs/deep/y.md", "r.md", "src/a.py"]),
        ("src/**/a.py", ["docs/a.md", "docs/deep/y.md", "r.md", "src/b/c.py"]),
        ("d*s", ["r.md", "src/a.py", "src/b/c.py"]),
    ],
)
def test_stars_cross_no_folder_as_in_git(tmp_path, patterns, kept):
    """`git ls-files --others --exclude-standard` says the same (git 2.39.5)."""
    for name in ("r.md", "docs/a.md", "docs/deep/y.md", "src/a.py", "src/b/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"x = '{name}'")
    (tmp_path / ".gitignore").write_text(patterns + "\n")
    [document], _ = read(f"repo:{tmp_path}")
    found = [line[2:] for line in document.text.splitlines() if line.startswith("# ")]
    assert sorted(found) == kept


def test_a_repository_without_text_among_many_is_counted(tmp_path):
    for name in ("a", "empty"):
        (tmp_path / name / ".git").mkdir(parents=True)
    (tmp_path / "a" / "one.py").write_text("x = 1")
    documents, bad = read(f"repo:{tmp_path}")
    assert [document.id for document in documents] == ["a"]
    assert bad.skipped == {"a repository without a text file": 1}


def test_a_folder_of_repositories_is_a_document_each(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / ".git").mkdir(parents=True)
        (tmp_path / name / "a.py").write_text(f"NAME = '{name}'")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "a.py").write_text("no repository")
    documents, bad = read(f"repo:{tmp_path}")
    assert [(d.id, d.text) for d in documents] == [
        ("one", "# a.py\nNAME = 'one'\n"),
        ("two", "# a.py\nNAME = 'two'\n"),
    ]
    assert bad.skipped == {"beside the repositories": 1}
    assert [u.name for u in reader_for("repo:x").units(f"repo:{tmp_path}", "r")] == ["one", "two"]
    (tmp_path / ".git").mkdir()  # now the folder is the repository
    [document], _ = read(f"repo:{tmp_path}")
    assert "# three/a.py\n" in document.text


def test_a_repository_beyond_the_longest_document_is_cut_between_files(tmp_path):
    root = write_files(tmp_path / "r", a_md="a" * 30, b_md="b" * 30, c_md="c" * 30, d_md="d" * 99)
    documents, bad = read(f"repo:{root}", "skip", max_doc_bytes=80)
    assert [(d.id, len(d.text)) for d in documents] == [("r", 76), ("r:2", 38)]
    assert bad.skipped == {"longer than 80 bytes (--max-doc-bytes)": 1}
    with pytest.raises(InvalidInput, match=r"d\.md: longer than 80 bytes"):
        read(f"repo:{root}", max_doc_bytes=80)


@given(st.lists(st.lists(st.integers(0, 5), max_size=4), min_size=6, max_size=6))
def test_every_file_once_and_behind_its_needs_unless_in_a_circle(edges):
    names = [f"f{n}" for n in range(6)]
    needs = {name: [names[n] for n in found] for name, found in zip(names, edges, strict=True)}
    ordered = dependencies_first(names, needs)
    assert sorted(ordered) == names
    reach = {name: {name} for name in names}
    for _ in names:
        reach = {n: reach[n].union(*(reach[m] for m in needs[n])) for n in names}
    for name in names:
        for need in needs[name]:
            if name not in reach[need]:
                assert ordered.index(need) < ordered.index(name)
