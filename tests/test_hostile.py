"""Names and numbers that mean harm: none commands a terminal, leads elsewhere or never ends."""

from __future__ import annotations

import json
import logging
import shutil

import pytest

from giraffe_cli.checkpoint import inspect
from giraffe_cli.cli.app import harmless_record
from giraffe_cli.config.building import apply_overrides
from giraffe_cli.config.files import read_yaml
from giraffe_cli.errors import InvalidInput
from giraffe_cli.plain_yaml import parse_yaml
from giraffe_cli.units import parse_length, visible

LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
EVIL = "\x1b[2J\u009b31m\u202e<script>"


@pytest.fixture
def folder(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_commands_a_terminal_becomes_a_sign():
    assert visible(EVIL) == "␛[2J\ufffd31m\ufffd<script>"
    assert visible("tab\tline\n ü 漢字 \u200d") == "tab\tline\n ü 漢字 \u200d"


def test_a_name_reaches_stdout_and_stderr_as_signs(giraffe, tiny_llama, tmp_path):
    records = [{"id": f"{EVIL}{n}", "text": "the grass is green " * 30} for n in range(9)]
    corpus = tmp_path / f"{EVIL}.jsonl"
    corpus.write_text("".join(json.dumps(record) + "\n" for record in records))
    words = ["pack-data", corpus, "--tokenizer", tiny_llama, "--window", "64", "--report"]
    done = giraffe(*words, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert done.code == 0
    for text in (done.stdout, done.stderr, page):
        assert not {"\x1b", "\u009b", "\u202e"} & set(text)
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    corpus.write_text('{"text": 7}\n')
    told = giraffe(*words, "--out", tmp_path / "other")
    assert told.code == 3
    assert "\x1b" not in told.stderr
    assert "␛[2J" in told.stderr


def test_json_escapes_what_commands_a_terminal(giraffe, tiny_llama, tmp_path):
    source = tmp_path / "\u009b31m.md"
    source.write_text("the grass is green " * 30)
    words = ["pack-data", source, "--tokenizer", tiny_llama, "--window", "64", "--json"]
    done = giraffe(*words, "--out", tmp_path / "out")
    assert "\u009b" not in done.stdout
    assert any("\u009b31m.md" in name for name in json.loads(done.stdout)["sources"])


def test_a_library_that_logs_a_foreign_name_keeps_its_colours_alone():
    arguments = ("x", logging.WARNING, "x.py", 1, "\x1b[1mbold\x1b[0m %s", (EVIL,), None)
    told = harmless_record(*arguments).getMessage()
    assert told == "\x1b[1mbold\x1b[0m ␛[2J\ufffd31m\ufffd<script>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 3000, "nested too deeply"),
        ("&a [*a]", "stand for more than"),
        (LAUGHS, "stand for more than"),
        ("7: a", "the key 7 is no text"),
        ("9" * 5000, "Exceeds the limit"),
        ("2024-01-01", "no plain value"),
    ],
)
def test_yaml_is_plain_and_of_a_size(text, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        parse_yaml(text)
    with pytest.raises(InvalidInput):
        apply_overrides({}, [f"seed={text}"])
    (tmp_path / "a.yaml").write_text(f"target_length: 16\n{text}" if ":" in text else text)
    with pytest.raises(InvalidInput):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"vocab_size": 2**62},
        {"max_position_embeddings": 10**30},
        {"rms_norm_eps": "small"},
        {"hidden_act": EVIL},
        {"dtype": EVIL},
        {"architectures": 7},
        {"architectures": [1, None]},
        {"rope_parameters": {"rope_type": ["yarn"]}},
        {"rope_parameters": {"rope_type": "linear", "factor": 1e999}},
        {"rope_parameters": {"rope_type": "linear", "factor": 1e300}},
        {"rope_parameters": {"rope_type": "dynamic", "factor": None}},
        {"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": "x"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e308}},
    ],
)
def test_numbers_without_end_are_refused(folder, tmp_path, changes):
    edit(folder, **changes)
    with pytest.raises(InvalidInput):
        inspect(str(folder), tmp_path)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "", "a\0b", 7, None])
def test_an_index_names_files_beside_it(folder, tmp_path, name):
    (folder / "model.safetensors").rename(tmp_path / "secret")
    index = {"weight_map": {"model.norm.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match="needs the name of a file beside it"):
        inspect(str(folder), tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
    ],
)
def test_a_header_is_held_to_the_format(folder, tmp_path, entry):
    text = json.dumps({"x": entry}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(InvalidInput, match="header"):
        inspect(str(folder), tmp_path)


def test_json_that_nests_without_end_is_refused(folder, tmp_path):
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        kept = (folder / name).read_text()
        (folder / name).write_text("[" * 200_000)
        with pytest.raises(InvalidInput, match=name):
            inspect(str(folder), tmp_path)
        (folder / name).write_text(kept)


def test_a_length_of_thousands_of_digits_is_none():
    with pytest.raises(InvalidInput, match="is not a length"):
        parse_length("9" * 5000)


def test_a_disk_that_fails_is_told_without_a_traceback(giraffe, tiny_llama, monkeypatch):
    def fail(*arguments, **named):
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr("giraffe_cli.verify.verify_directory", fail)
    told = giraffe("verify", tiny_llama)
    assert told.code == 1
    assert "error: runs/x: No space left on device" in told.stderr
    assert "hint:" in told.stderr
