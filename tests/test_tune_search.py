"""The search over tables: its constraint, its repeatability, and its proof on other documents."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tuning import HEAD, PlantedReader, planted_evidence

from giraffe_cli.errors import InvalidInput
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import Head, make_table
from giraffe_cli.tune.genome import WIDEST, critical_pairs, crossed, legal, mutated, seed_of
from giraffe_cli.tune.search import search, split

LLAMA_2 = Head(128, 1e4, 4096, 16384)
TRUTH = np.log(np.linspace(1.0, 6.0, 8))
"""Divisors under which the planted loss is least."""


def towards(table, example):
    """Nats: 3 and the mean square distance from `TRUTH`, the same on every document."""
    logs = np.log(HEAD.base_inv_freq() / np.array(table.inv_freq))
    return 3.0 + float(np.mean((logs - TRUTH) ** 2)) + int(example.key[4])


def hunt(tmp_path, loss=towards, **changes):
    out = tmp_path / f"out{len([*tmp_path.iterdir()])}"
    out.mkdir()
    evidence = planted_evidence(changes.pop("count", 8))
    reader = changes.pop("reader", None) or PlantedReader(loss)
    settings = {"evaluations": 32, "documents": 2, "seed": 0, **changes}
    return search(reader, HEAD, evidence, SilentReporter(), out=out, **settings), out


def keeps_the_rule(genome, head):
    factors = np.array(genome.factors)
    assert len(factors) == head.head_dim // 2
    assert (factors >= 1).all()
    assert (np.diff(factors) >= 0).all()
    assert factors[-1] <= WIDEST * head.factor * (1 + 1e-9)
    table = genome.table(head)
    assert (np.diff(table.inv_freq) < 0).all()


@given(st.integers(0, 2**32 - 1), st.integers(0, 63))
@hypothesis_settings(max_examples=60, deadline=None)
def test_mutations_and_crossings_keep_the_rule(seed, first_pair):
    generator = np.random.default_rng(seed)
    one, other = seed_of("yarn", LLAMA_2), seed_of("ntk", LLAMA_2)
    child = mutated(one, first_pair, LLAMA_2, generator, "0")
    keeps_the_rule(child, LLAMA_2)
    keeps_the_rule(crossed(child, other, LLAMA_2, generator, "0 and 1"), LLAMA_2)


@given(st.lists(st.floats(-5, 5), min_size=64, max_size=64))
@hypothesis_settings(max_examples=60, deadline=None)
def test_anything_becomes_legal(values):
    keeps_the_rule(legal(np.array(values), 1.0, LLAMA_2, "test"), LLAMA_2)


@pytest.mark.parametrize("name", ["yarn", "ntk"])
def test_a_seed_is_the_closed_formula(name):
    table, formula = seed_of(name, LLAMA_2).table(LLAMA_2), make_table(name, {}, LLAMA_2)
    np.testing.assert_allclose(table.inv_freq, formula.inv_freq, rtol=1e-9)
    assert table.attention_factor == pytest.approx(formula.attention_factor)


def test_critical_pairs_are_ntk_up_to_it_and_s_beyond():
    for genome in critical_pairs(LLAMA_2):
        keeps_the_rule(genome, LLAMA_2)
    theory = LLAMA_2.pair_turning(1.0)  # 45.0 of Llama 2: 128 ln(4096/2π) / (2 ln 1e4)
    assert theory == pytest.approx(45.02, abs=0.01)
    (at_theory,) = (g for g in critical_pairs(LLAMA_2) if g.origin == "critical pair 45.0")
    assert at_theory.factors[46:] == (4.0,) * 18
    assert at_theory.factors[9] == pytest.approx(4 ** (9 / theory))


def test_finds_better_tables_than_its_seeds_and_proves_it(tmp_path):
    result, out = hunt(tmp_path)
    assert len(result["trials"]) == 32
    assert result["best"]["loss"] < result["best_seed"]["loss"] - 0.02
    assert result["improved"] is True
    assert result["held_out"]["minus_seed"]["ci_high"] < 0
    assert result["held_out"]["samples"] == 6
    assert not {*result["fitness_documents"]} & {*result["held_out_documents"]}
    assert json.loads((out / "search.json").read_text())["best"] == json.loads(
        json.dumps(result["best"])
    )


def test_the_cost_within_the_native_window_is_told_of_both(tmp_path):
    def costly(table, example):
        near = example.length == 128
        return towards(table, example) + (0.5 if near and table.strategy != "none" else 0.0)

    result, _ = hunt(tmp_path, costly)
    base = np.mean((0 - TRUTH) ** 2)
    for name in ("best", "seed"):
        own = np.log(np.array(result["best" if name == "best" else "best_seed"]["factors"]))
        expected = 0.5 + np.mean((own - TRUTH) ** 2) - base
        assert result["short_context"][name]["mean"] == pytest.approx(expected)


def test_says_when_it_is_no_better_on_other_documents(tmp_path):
    def overfitted(table, example):
        own = int(example.key[4]) in (0, 4)  # the two documents that the search reads
        return towards(table, example) if own else 6.0 - towards(table, example)

    result, _ = hunt(tmp_path, overfitted)
    assert result["fitness_documents"] == ["doc-0", "doc-4"]
    assert result["best"]["loss"] < result["best_seed"]["loss"]
    assert result["improved"] is False


def test_the_same_command_gives_the_same_factors_and_another_seed_others(tmp_path):
    files = [(hunt(tmp_path, seed=seed)[1] / "factors.json").read_bytes() for seed in (0, 0, 1)]
    assert files[0] == files[1]
    assert json.loads(files[0])["long_factor"] != json.loads(files[2])["long_factor"]


def test_a_stopped_search_replays_itself(tmp_path):
    whole, _ = hunt(tmp_path)
    reader = PlantedReader(towards)
    hunt(tmp_path, reader=reader, evaluations=16)
    before = reader.read_tokens
    resumed, _ = hunt(tmp_path, reader=reader)
    assert resumed["best"] == whole["best"]
    again = PlantedReader(towards)
    hunt(tmp_path, reader=again)
    assert reader.read_tokens - before < 0.75 * again.read_tokens


def test_the_file_is_what_longrope_takes(tmp_path):
    result, out = hunt(tmp_path)
    table = make_table("longrope", {"factors": str(out / "factors.json")}, HEAD)
    divisors = HEAD.base_inv_freq() / np.array(table.inv_freq)
    np.testing.assert_allclose(divisors, result["best"]["factors"], rtol=1e-12)
    assert table.attention_factor == result["best"]["attention_factor"]


def test_hopeless_tables_are_given_up_half_way(tmp_path):
    result, _ = hunt(tmp_path, documents=4)
    stopped = [trial for trial in result["trials"] if trial["stopped"]]
    whole = [trial for trial in result["trials"] if not trial["stopped"]]
    assert stopped
    assert result["best"] in whole


def test_some_documents_must_be_left_for_the_proof():
    entries = planted_evidence(4).deciding()
    deciding, proving = split(entries, 2)
    assert [e.key[:5] for _, e in deciding] == ["doc-0", "doc-2"]
    assert [e.key[:5] for _, e in proving] == ["doc-1", "doc-3"]
    with pytest.raises(InvalidInput, match="none is left to prove its result on"):
        split(entries, 4)
