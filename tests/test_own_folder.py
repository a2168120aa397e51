"""A command writes into no folder of a model's, of a run's, or of somebody else's files."""

from __future__ import annotations

import shutil

import pytest

from giraffe_cli.errors import InvalidInput
from giraffe_cli.own_folder import refuse_a_models, refuse_anothers
from giraffe_cli.rundir import write_json, write_sealed


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
def test_a_models_folder_is_refused(tmp_path, name):
    refuse_a_models(tmp_path)
    (tmp_path / name).write_text("{}")
    with pytest.raises(InvalidInput, match=f"is the folder of a model: it holds {name}"):
        refuse_a_models(tmp_path)


class TestAnothers:
    def refused(self, folder, words):
        with pytest.raises(InvalidInput, match=words):
            refuse_anothers(folder, ["results.json"], ["report.html"])

    def passes(self, folder):
        refuse_anothers(folder, ["results.json"], ["report.html"])

    def test_new_empty_or_with_other_names(self, tmp_path):
        self.passes(tmp_path / "new")
        (tmp_path / "notes.txt").write_text("mine")
        self.passes(tmp_path)

    @pytest.mark.parametrize("name", ["results.json", "report.html"])
    def test_files_of_those_names(self, tmp_path, name):
        (tmp_path / name).write_text("mine")
        self.refused(tmp_path, f"holds {name}, damaged or not written by this command")

    def test_its_own_results_and_what_a_kill_left(self, tmp_path):
        (tmp_path / "report.html").write_text("page")
        write_sealed(tmp_path / "results.json", {"schema_version": 2})
        self.passes(tmp_path)
        (tmp_path / "results.json").unlink()
        self.refused(tmp_path, "holds report.html")
        (tmp_path / "cache").mkdir()
        self.refused(tmp_path, "holds report.html")
        (tmp_path / "cache" / "0123-float32-nll.jsonl").write_text("{}")
        self.passes(tmp_path)

    @pytest.mark.parametrize(
        ("line", "is_ours"),
        [
            ('{"key": "a", "prompt_sha256": "0"}', True),
            ('{"text": "mine"}', False),
            ("mine", False),
        ],
    )
    def test_samples_are_known_by_their_first_line(self, tmp_path, line, is_ours):
        (tmp_path / "samples.jsonl").write_text(f"{line}\n")
        if is_ours:
            refuse_anothers(tmp_path, ["results.json", "samples.jsonl"])
        else:
            with pytest.raises(InvalidInput, match=r"holds samples\.jsonl"):
                refuse_anothers(tmp_path, ["results.json", "samples.jsonl"])

    def test_json_of_something_else(self, tmp_path):
        write_json(tmp_path / "results.json", {"score": 3})
        self.refused(tmp_path, "holds results.json")

    def test_a_runs_folder(self, tmp_path):
        (tmp_path / "run.yaml").write_text("model: calf")
        self.refused(tmp_path, "is the folder of a run of giraffe extend")


@pytest.mark.parametrize(
    "command",
    [
        ("extend", "--target-len", "512", "--rope", "yarn", "--steps", "0", "--no-eval", "--model"),
        ("extend", "--target-len", "512", "--rope", "yarn", "--dry-run", "--model"),
        ("rope", "compare", "linear", "ntk", "--target-len", "512", "--model"),
        ("rope", "search", "--target-len", "512", "--model"),
        ("eval", "--tasks", "passkey", "--lengths", "128"),
    ],
)
def test_no_command_writes_beside_the_base(giraffe, tiny_llama, tmp_path, command):
    folder = shutil.copytree(tiny_llama, tmp_path / "base")
    before = sorted(path.name for path in folder.iterdir())
    done = giraffe(*command, folder, "--out", folder)
    assert done.code == 3, done.stderr
    assert f"{folder} is the folder of a model: it holds config.json" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_an_evaluation_leaves_what_is_not_its_own(giraffe, tiny_llama, tmp_path):
    (tmp_path / "report.html").write_text("precious")
    command = ("eval", tiny_llama, "--tasks", "passkey", "--lengths", "128", "--out", tmp_path)
    done = giraffe(*command)
    assert done.code == 3, done.stderr
    assert "holds report.html, damaged or not written by this command" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_files_beside_the_packed_ones_are_refused_before_the_plan(giraffe, tiny_llama, tmp_path):
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "mine.txt").write_text("precious")
    options = ("--model", tiny_llama, "--target-len", "512", "--rope", "yarn", "--no-eval")
    done = giraffe("extend", *options, "--out", tmp_path)
    assert done.code == 3, done.stderr
    assert "packed holds files that packing did not write, such as mine.txt" in done.stderr
    assert "memory" not in done.stderr
