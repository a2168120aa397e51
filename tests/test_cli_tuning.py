"""`giraffe rope compare` and `giraffe rope search` as typed: streams, exit codes, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from giraffe_cli.cli.tuning import Extending, knobs_by_strategy
from giraffe_cli.cli.tuning_text import search_text
from giraffe_cli.errors import UsageError
from giraffe_cli.rundir import read_json
from giraffe_cli.tune.searched import searched_for_another


@pytest.fixture
def compare(giraffe, tiny_llama, corpus):
    def run(*options):
        return giraffe("rope", "compare", "--model", tiny_llama, "--data", corpus,
                       "--target-len", "512", "--documents", "3", *options)  # fmt: skip

    return run


@pytest.fixture
def search(giraffe, tiny_llama, corpus):
    def run(*options):
        return giraffe("rope", "search", "--model", tiny_llama, "--data", corpus, "--target-len",
                       "512", "--documents", "2", "--held-out", "3", "--evaluations", "14",
                       *options)  # fmt: skip

    return run


def test_compare_tells_a_table_a_reason_and_the_next_command(compare, tmp_path):
    out = tmp_path / "c"
    done = compare("yarn", "ntk", "none", "--no-needles", "--all", "--out", out)
    assert done.code == 0, done.stderr
    assert "128 → 512 tokens, without training" in done.stdout
    assert "not told apart from it" in done.stdout or "the lowest loss at 512" in done.stdout
    assert "next: giraffe extend --model" in done.stdout
    assert f"results  {out / 'comparison.json'}, pictures beside it" in done.stdout
    assert "6 tables on up to 3 samples of 512, within 30 min" in done.stderr
    assert {"comparison.json", "rope_comparison.png", "rope_comparison.svg", "cache"} <= {
        path.name for path in out.iterdir()
    }
    first = json.loads((out / "comparison.json").read_text())

    again = compare("yarn", "ntk", "none", "--no-needles", "--all", "--out", out, "--json")
    result = json.loads(again.stdout)
    assert (result["read_tokens"], first["read_tokens"]) == (0, 6 * 3 * (128 + 256 + 512))
    assert result["settings"] == first["settings"]
    assert result["out"] == str(out)


def test_a_narrow_terminal_shows_the_target_whole(compare, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = compare("yarn", "ntk", "none", "--no-needles", "--all", "--out", tmp_path / "c")
    (head,) = [line for line in done.stdout.splitlines() if line.startswith("setting")]
    assert head.split() == ["setting", "read", "nll", "512", "minus", "best", "short"]
    assert "…" not in done.stdout


def test_compare_takes_knobs_in_the_place_of_variants(compare, tmp_path):
    done = compare(
        "yarn", "--set", "yarn.beta_fast=24", "--no-needles", "--out", tmp_path, "--json"
    )
    assert done.code == 0, done.stderr
    (row,) = json.loads(done.stdout)["settings"]
    assert (row["label"], row["knobs"]) == ("yarn beta_fast=24", {"beta_fast": 24})


def test_factors_that_win_are_written_where_extend_takes_them(compare, giraffe, tmp_path):
    file = tmp_path / "given.json"
    file.write_text(json.dumps([1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0]))
    done = compare("longrope", "--no-needles", "--out", tmp_path / "c")
    assert done.code == 0, done.stderr
    written = json.loads((tmp_path / "c" / "factors.json").read_text())
    assert len(written["long_factor"]) == 8
    assert f"--factors {tmp_path / 'c' / 'factors.json'}" in done.stdout.replace("\n", "")


def test_search_writes_factors_that_extend_takes(search, giraffe, tiny_llama, tmp_path):
    out = tmp_path / "s"
    done = search("--out", out)
    assert done.code == 0, done.stderr
    assert "on 3 documents that the search has not read" in done.stdout
    (warning,) = read_json(out / "search.json")["warnings"]
    assert warning.startswith("the result was proven on 3 documents; an interval from fewer than")
    assert warning in done.stderr.replace("\n", " ")
    found = read_json(out / "search.json")
    assert 0 < found["read_tokens"] <= found["most_tokens"]
    by_look_ups = "\n".join(map(str, search_text({**found, "fitness": "needle-nll"})))
    assert "on 3 prompts with other numbers (their text may be the same)" in by_look_ups
    assert "within the native window it costs" in done.stdout
    assert "14 tables on 2 samples of 512, then the best and its seed on 3 others" in done.stderr
    assert {"search.json", "factors.json", "rope_search.png", "cache"} <= {
        path.name for path in out.iterdir()
    }
    result = json.loads((out / "search.json").read_text())
    better = "better" if result["improved"] else "not shown to be better"
    assert f": {better} than" in done.stdout
    extended = giraffe(
        "extend", "--model", tiny_llama, "--target-len", "512", "--steps", "0", "--no-eval",
        "--factors", out / "factors.json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert extended.code == 0, extended.stderr
    table = read_json(tmp_path / "run" / "rope.json")
    assert table["attention_factor"] == result["best"]["attention_factor"]

    again = search("--out", out, "--json")
    repeated = json.loads(again.stdout)
    assert repeated["best"] == json.loads(json.dumps(result["best"]))
    assert repeated["read_tokens"] == 0


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--minutes", "0"), 2, "--minutes 0"),
        (("--documents", "0"), 2, "Invalid value for '--documents'"),
        (("--fitness", "ppl"), 2, "known: needle-nll, nll"),
        (("--fitness", "needle-nll", "--no-needles"), 2, "leave one of them out"),
        (("--dtype", "int3"), 2, "--dtype int3"),
        (("--on-existing-rope", "ignore"), 2, "known: compose, refuse, replace"),
        (("yarm",), 2, "did you mean `yarn`?"),
        (("yarn", "--set", "ntk.alpha=8"), 3, "knobs of ntk have no effect"),
        (("yarn", "--set", "beta_fast=8"), 2, "no `STRATEGY.knob=value`"),
        (("--target-len", "64"), 3, "hint: choose a longer --target-len\n"),
        (("--target-len", "8k"), 3, "none of 3 documents has 8192 tokens"),
    ],
)
def test_compare_refuses_what_it_cannot_do(compare, tmp_path, options, code, text):
    done = compare("--out", tmp_path / "c", *options)
    assert (done.code, text in done.stderr) == (code, True), done.stderr


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--evaluations", "1"), 2, "Invalid value for '--evaluations'"),
        (("--held-out", "0"), 2, "Invalid value for '--held-out'"),
        (("--documents", "0"), 2, "Invalid value for '--documents'"),
        (("--documents", "30"), 3, "none is left to prove its result on"),
    ],
)
def test_search_refuses_what_it_cannot_do(search, tmp_path, options, code, text):
    done = search("--out", tmp_path / "s", *options)
    assert (done.code, text in done.stderr) == (code, True), done.stderr


def test_the_next_command_takes_over_what_was_given():
    plain = Extending("calf", None, "16k", None)
    assert plain.line("yarn", {}) == "giraffe extend --target-len 16k --rope yarn"
    given = Extending("./my llama", ["a.jsonl", "b"], "1m", "compose", allow_pickle=True)
    assert given.line("ntk", {"alpha": 8.0}) == (
        "giraffe extend --model './my llama' --data a.jsonl --data b --target-len 1m "
        "--on-existing-rope compose --allow-pickle --rope ntk --set rope.knobs.alpha=8.0"
    )
    assert plain.line("longrope", {}, Path("f.json")).endswith("16k --factors f.json")


def test_knobs_of_several_strategies():
    assert knobs_by_strategy(["yarn.beta_fast=64", "yarn.truncate=false", "ntk.alpha=8"]) == {
        "yarn": {"beta_fast": 64, "truncate": False},
        "ntk": {"alpha": 8},
    }
    with pytest.raises(UsageError, match="no plain YAML"):
        knobs_by_strategy(["yarn.beta_fast=["])


@pytest.mark.parametrize("there", ["search.json", "comparison.json"])
def test_a_folder_of_the_other_command_is_refused(compare, search, tmp_path, there):
    """Both write `factors.json`: a comparison put an example in the place of what was found."""
    (tmp_path / there).write_text('{"schema_version": 1}')
    done = (compare if there == "search.json" else search)("--out", tmp_path)
    assert done.code == 3
    assert f"{tmp_path} holds {there}, of the other command" in done.stderr


def test_what_is_no_value_is_told_as_that(compare, tmp_path):
    done = compare("yarn", "--set", "yarn.beta_fast=.inf", "--out", tmp_path / "c")
    assert done.code == 2
    assert "--set yarn.beta_fast=.inf: " in done.stderr
    assert "inf" in done.stderr.partition("no plain YAML: ")[2]


def test_a_table_is_not_held_against_what_it_was_searched_on_without_a_word(
    compare, search, tmp_path
):
    assert search("--out", tmp_path / "s").code == 0
    factors = tmp_path / "s" / "factors.json"
    fitted = read_json(factors)["searched"]["fitness_documents"]
    assert fitted == read_json(tmp_path / "s" / "search.json")["fitness_documents"] != []
    asked = ("yarn", "longrope", "--set", f"longrope.factors={factors}", "--no-needles", "--json")
    done = compare(*asked, "--out", tmp_path / "c")
    result = json.loads(done.stdout)
    (told,) = [w for w in result["warnings"] if "was searched on" in w]
    assert told in done.stderr.replace("\n", " ")
    assert any(name in told for name in fitted)


@pytest.fixture(scope="module")
def factors(tmp_path_factory):
    """As a search for calf at 16k writes them, had it found nothing better."""
    search = {"model": "calf", "improved": False, "fitness_documents": ["a"]}
    content = {
        **{"long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0], "attention_factor": 1.1},
        **{"original_max_position_embeddings": 128, "target_length": 512, "rope_theta": 10000.0},
        "searched": search,
    }
    path = tmp_path_factory.mktemp("factors") / "factors.json"
    path.write_text(json.dumps(content))
    return path


def test_factors_of_another_search_are_not_taken_without_a_word(factors):
    told = searched_for_another(factors, 1024, 5e5, 8192)
    assert [one.removeprefix(f"divisors of {factors}: ") for one in told] == [
        "they were searched for 512 tokens, 1k are asked for",
        "they were searched on calf with rope_theta 10000, not 500000",
        "they were searched on calf with original_max_position_embeddings 128, not 8192",
        "their search did not show them to be better than the table they began with",
    ]
    assert len(searched_for_another(str(factors), 512, None, None)) == 1
    published = factors.parent / "published.json"
    published.write_text(json.dumps({"long_factor": [1.0] * 8, "target_length": 64}))
    for nothing in (published, None, "", [1.0, 2.0], factors.parent):
        assert searched_for_another(nothing, 512, 1e4, 128) == []


@pytest.mark.parametrize(
    "command",
    [
        ("extend", "--steps", "0", "--no-eval", "--dry-run"),
        ("plan", "--device", "h100"),
    ],
)
def test_commands_tell_for_what_factors_were_searched(giraffe, tiny_llama, factors, command):
    verb, *options = command
    asked = (verb, "--model", tiny_llama, "--factors", factors, *options)
    told = " ".join(giraffe(*asked, "--target-len", "1k").stderr.split())
    assert "they were searched for 512 tokens, 1k are asked for" in told
    assert "did not show them to be better" in told
    assert "rope_theta" not in told
    same = giraffe(*asked, "--target-len", "512")
    assert same.code == 0, same.stderr
    assert "they were searched" not in same.stderr
    other = giraffe(verb, "--model", "calf", *asked[3:], "--target-len", "512").stderr
    assert "with original_max_position_embeddings 128, not" in " ".join(other.split())


def test_a_comparison_tells_for_what_factors_were_searched(compare, factors, tmp_path):
    asked = ("longrope", "yarn", "--set", f"longrope.factors={factors}", "--no-needles")
    done = compare(*asked, "--out", tmp_path)
    assert "did not show them to be better" in " ".join(done.stderr.split())


def test_factors_that_a_knob_names_and_another_base_are_told_too(giraffe, tiny_llama, factors):
    knob = ("--rope", "longrope", "--set", f"rope.knobs.factors={factors}", "--target-len", "1k")
    for command in (("extend", "--steps", "0", "--no-eval", "--dry-run"), ("plan",)):
        told = giraffe(command[0], "--model", tiny_llama, *command[1:], *knob).stderr
        assert "they were searched for 512 tokens, 1k are asked for" in " ".join(told.split())
    content = {**json.loads(factors.read_text())}
    content["searched"] = {**content["searched"], "sha256": "0" * 64, "improved": True}
    other = factors.parent / "other.json"
    other.write_text(json.dumps(content))
    done = giraffe("plan", "--model", tiny_llama, "--factors", other, "--target-len", "512")
    assert "they were searched on calf, which is another model" in " ".join(done.stderr.split())
