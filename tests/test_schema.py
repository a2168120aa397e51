"""The published schema is current, and what an evaluation writes has no key beside it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from giraffe_cli.evals.schema import Results, results_schema

PUBLISHED = Path(__file__).parent.parent / "docs" / "results.schema.json"
RESULTS = TypeAdapter(Results)


@pytest.fixture
def results(giraffe, tiny_llama, corpus, tmp_path):
    out = tmp_path / "evaluated"
    done = giraffe(
        *("eval", tiny_llama, "--base", tiny_llama, "--data", corpus, "--lengths", "128,384"),
        *("--tasks", "nll,positions,passkey", "--set", "nll.targets=16", "--out", out),
        *("--set", "passkey.depths=2", "--set", "passkey.trials=1"),
        *("--gate", "nll@384-nll@128<9", "--gate", "effective_length.passkey<1m"),
        *("--threshold", "0.5"),
    )
    assert done.code == 5, done.stderr  # no passkey is found by a random model
    return json.loads((out / "results.json").read_text())


def test_the_published_schema_is_what_the_command_prints(giraffe):
    done = giraffe("eval", "--schema")
    assert done.code == 0
    assert json.loads(done.stdout) == results_schema()
    assert PUBLISHED.read_text(encoding="utf-8") == done.stdout, (
        "giraffe eval --schema > docs/results.schema.json"
    )


def test_an_evaluation_holds_every_key_and_no_other(results):
    """Validation drops unknown keys, so that what comes back is all the schema knows."""
    assert results["giraffe_seal"]
    assert RESULTS.validate_python(results, strict=True) == results
    assert results["models"]["checkpoint"]["curves"]
    assert results["paired"]["nll"]["real_minus_shuffled"]["checkpoint"]["384"]["p_value"] <= 1


def test_what_is_no_result_is_refused(results):
    for spoil in (
        lambda r: r.pop("native_length"),
        lambda r: r.update(schema_version=1),
        lambda r: r["models"]["base"]["tasks"]["nll"]["128"].pop("n"),
        lambda r: r["paired"]["nll"]["checkpoint_minus_base"]["128"].pop("p_value"),
        lambda r: r["gates"][0].update(op="=="),
    ):
        spoilt = copy.deepcopy(results)
        spoil(spoilt)
        with pytest.raises(ValidationError):
            RESULTS.validate_python(spoilt)


def test_the_example_under_docs_is_such_a_result():
    example = json.loads((PUBLISHED.parent / "example" / "results.json").read_text("utf-8"))
    assert RESULTS.validate_python(example, strict=True) == example
