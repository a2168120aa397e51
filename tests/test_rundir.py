"""Files are whole or absent whatever happens, and a stage counts only while every byte holds."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli import rundir
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.rundir import (
    MANIFEST,
    atomic_open,
    begin_stage,
    commit_file,
    digest_bytes,
    digest_file,
    digest_value,
    finish_stage,
    make_folder,
    read_json,
    stage_holds,
    temporary_path,
    write_json,
)

INPUTS = {"base": "abc", "seed": 0}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ── one file ─────────────────────────────────────────────────────────────────────────────────────


def test_bytes_appear_only_when_the_block_ends(tmp_path):
    final = tmp_path / "a"
    with atomic_open(final) as handle:
        handle.write(b"new")
        handle.flush()
        assert not final.exists()
    assert contents(tmp_path) == {"a": b"new"}


def test_an_exception_leaves_the_old_content_and_no_leftover(tmp_path):
    final = tmp_path / "a"
    final.write_bytes(b"old")
    with pytest.raises(TypeError), atomic_open(final) as handle:
        handle.writelines([b"half", "text among bytes"])
    assert contents(tmp_path) == {"a": b"old"}


def test_a_value_that_is_no_json_leaves_the_old_content(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": 2, "y": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert list(contents(tmp_path)) == ["a.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_error_at_any_step_leaves_the_old_content(tmp_path, monkeypatch, call):
    final = tmp_path / "a"
    final.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rundir.os, call, fail)
    with pytest.raises(GiraffeError, match="cannot write .*: No space left on device") as caught:
        write_json(final, {"x": 1})
    assert "free disk space" in caught.value.hint
    monkeypatch.undo()
    assert contents(tmp_path) == {"a": b"old"}


def run_python(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from giraffe_cli import rundir

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

final, where = Path(sys.argv[1]), sys.argv[2]
if where != "write":
    setattr(os, where, die)
with rundir.atomic_open(final) as handle:
    handle.write(b"new" * 100_000)
    if where == "write":
        die()
"""


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_kill_leaves_the_old_content_and_the_next_write_succeeds(tmp_path, where):
    final = tmp_path / "a"
    final.write_bytes(b"old")
    assert run_python(KILLED, final, where).returncode == -signal.SIGKILL
    assert final.read_bytes() == b"old"
    with atomic_open(final) as handle:
        handle.write(b"again")
    assert contents(tmp_path) == {"a": b"again"}


FULL_DISK = """
import resource, sys
from pathlib import Path
from giraffe_cli.errors import GiraffeError
from giraffe_cli.rundir import atomic_open

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with atomic_open(Path(sys.argv[1])) as handle:
        handle.write(bytes(1 << 20))
except GiraffeError as error:
    sys.exit(f"{error.message}|{error.hint}")
"""


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    done = run_python(FULL_DISK, tmp_path / "a")
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot write {tmp_path}/a: ")
    assert "|free disk space or choose another --out" in done.stderr
    assert contents(tmp_path) == {}


def test_commit_renames_what_a_writer_left_beside(tmp_path):
    final = tmp_path / "a.safetensors"
    temporary = temporary_path(final)
    temporary.write_bytes(b"weights")
    commit_file(temporary, final)
    assert contents(tmp_path) == {"a.safetensors": b"weights"}


@pytest.mark.parametrize("by", ["atomic_open", "commit_file"])
def test_bytes_are_durable_before_their_name_and_the_name_before_it_counts(
    tmp_path, monkeypatch, by
):
    """A power cut then leaves the old content or the new, and a manifest names no lost file."""
    done, final = [], tmp_path / "a"

    def noted(call, word):
        return lambda *given: (done.append(word(given[0])), call(*given))[1]

    def kind(descriptor):
        return "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "bytes"

    monkeypatch.setattr(rundir.os, "fsync", noted(os.fsync, kind))
    monkeypatch.setattr(rundir.os, "replace", noted(os.replace, lambda _: "name"))
    if by == "atomic_open":
        with atomic_open(final) as handle:
            handle.write(b"new")
    else:
        temporary_path(final).write_bytes(b"new")
        commit_file(temporary_path(final), final)
    assert done == ["bytes", "name", "folder"]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="a.json cannot be read as JSON"):
        read_json(path)
    with pytest.raises(InvalidInput, match="b.json does not exist"):
        read_json(tmp_path / "b.json")


def test_digests_agree_and_ignore_key_order(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4
    assert digest_file(tmp_path / "a") == digest_bytes(b"abc") == known
    assert digest_value({"a": 1, "b": 2}) == digest_value({"b": 2, "a": 1})
    assert digest_value({"a": 1}) != digest_value({"a": 2})


# ── a stage ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stage") / "packed"
    begin_stage(folder)
    (folder / "shards").mkdir()
    (folder / "stats.json").write_bytes(b"{}\n")
    (folder / "shards" / "0.bin").write_bytes(bytes(range(16)))
    finish_stage(folder, INPUTS, windows=4)
    return folder


def test_a_finished_stage_holds_for_its_inputs_alone(stage):
    assert stage_holds(stage, INPUTS)
    assert not stage_holds(stage, {**INPUTS, "seed": 1})
    assert not stage_holds(stage, {"base": "abc"})
    assert not stage_holds(stage.parent / "absent", INPUTS)
    assert read_json(stage / MANIFEST)["windows"] == 4


def test_what_a_stage_was_made_from_is_no_part_of_it(tmp_path):
    """A file there that could not be removed went into the manifest, which then held no more."""
    (tmp_path / ".work" / "unit").mkdir(parents=True)
    (tmp_path / ".work" / "unit" / "block").touch()
    assert finish_stage(tmp_path, INPUTS)["files"] == {}


def test_inputs_survive_the_trip_through_json(tmp_path):
    inputs = {"sources": ("a", "b"), "sizes": {1: 2}}
    finish_stage(tmp_path, inputs)
    assert stage_holds(tmp_path, inputs)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["stats.json", "shards/0.bin"]),
    position=st.integers(0, 15),
    flip=st.integers(1, 255),
)
def test_any_changed_byte_makes_a_stage_stale(stage, name, position, flip):
    path = stage / name
    original = path.read_bytes()
    changed = bytearray(original)
    changed[position % len(original)] ^= flip
    try:
        path.write_bytes(changed)
        assert not stage_holds(stage, INPUTS)
    finally:
        path.write_bytes(original)
    assert stage_holds(stage, INPUTS)


@pytest.mark.parametrize("change", ["shorter", "longer", "missing", "a folder"])
def test_a_file_of_another_shape_makes_a_stage_stale(tmp_path, change):
    path = tmp_path / "data"
    path.write_bytes(b"12345678")
    finish_stage(tmp_path, INPUTS)
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change != "missing":
        path.write_bytes(b"1234" if change == "shorter" else b"123456789")
    assert not stage_holds(tmp_path, INPUTS)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b'{"inputs": {"base": "abc", "seed": 0}}',
        b'{"inputs": {"base": "abc", "seed": 0}, "files": []}',
        b'{"inputs": {"base": "abc", "seed": 0}, "files": {"a": null}}',
        b'{"inputs": {"base": "abc", "seed": 0}, "files": {"a": {"bytes": 1}}}',
    ],
)
def test_a_damaged_manifest_never_holds_and_never_raises(tmp_path, manifest):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / MANIFEST).write_bytes(manifest)
    assert not stage_holds(tmp_path, INPUTS)


def test_beginning_a_stage_clears_what_a_killed_run_left(tmp_path):
    folder = tmp_path / "packed"
    (folder / "old").mkdir(parents=True)
    (folder / "old" / "half.partial").write_bytes(b"x")
    assert list(begin_stage(folder).iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match=f"cannot create {folder}") as caught:
            make_folder(folder)
        assert caught.value.hint == "choose another --out"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInput, match="is not writable"):
        make_folder(tmp_path)
