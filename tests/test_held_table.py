"""A base whose table follows the length of its text is read with one table, as in a single pass."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from evaluated import build_other_llama

from giraffe_cli.evals.base import Example
from giraffe_cli.evals.cache import sample_key
from giraffe_cli.evals.open_subject import OpenSubject
from giraffe_cli.evals.order import Prompt
from giraffe_cli.evals.subject import Subject
from giraffe_cli.inference.caches import CacheChoice
from giraffe_cli.inference.prompts import Prompt as Question
from giraffe_cli.inference.session import Answering, Session
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.held_table import HeldTable
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import Head, make_table
from giraffe_cli.rope.install import swap_table

NATIVE = 128
KINDS = {
    "dynamic": {"rope_type": "dynamic", "factor": 8.0},
    "longrope": {
        "rope_type": "longrope",
        "factor": 8.0,
        "original_max_position_embeddings": NATIVE,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0 + n for n in range(8)],
    },
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    made = build_other_llama(tmp_path_factory.mktemp("switching"))
    config = json.loads((made / "config.json").read_text())
    window = NATIVE if request.param == "dynamic" else 8 * NATIVE
    parameters = {**KINDS[request.param], "rope_theta": 10000.0}
    changed = {"rope_parameters": parameters, "max_position_embeddings": window}
    (made / "config.json").write_text(json.dumps({**config, **changed}))
    return made


def ids_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 380, length, dtype=np.int32)


def example_of(key: str, ids: np.ndarray, count: int) -> Example:
    return Example(key=key, cluster=key, length=len(ids), token_ids=ids, num_targets=count)


def nll_of_one_pass(folder, ids, count):
    """Nats of the last tokens, by stock transformers without a cache, the model loaded anew: a
    `dynamic` one keeps the table of its longest text."""
    tokens = torch.tensor(ids[None].astype(np.int64))
    with torch.inference_mode():
        logits = load_model(folder, dtype=torch.float32)(tokens, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(
        logits[-count - 1 : -1], tokens[0, -count:], reduction="none"
    )


def opened(folder, **how) -> OpenSubject:
    model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
    return OpenSubject(model, load_tokenizer(folder), 64, **how)


def test_losses_are_those_of_a_single_pass_at_every_length(folder):
    """Beyond the window, within it after that, and in a row: the 400 tokens share their beginning
    with the 300, whose keys were turned by another table."""
    subject, longest = opened(folder), ids_of(400)
    for length in (300, 400, 100, 400, 129):
        found = subject.outcome(example_of("d", longest[:length], 16)).target_nll
        expected = nll_of_one_pass(folder, longest[:length], 16)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    row = [example_of(f"r{n}", ids_of(n, n), 4) for n in (40, 90)]
    outcomes = subject.outcomes([Prompt((("", example),)) for example in row])
    for example, [outcome] in zip(row, outcomes, strict=True):
        expected = nll_of_one_pass(folder, example.token_ids, 4)
        np.testing.assert_allclose(outcome.target_nll, expected, atol=2e-5)


def test_prompts_in_a_row_have_the_table_of_the_longest(folder):
    """Not that of a length which none of them has, prompt and answer."""
    subject = opened(folder)
    examples = [example_of("a", ids_of(120), 4), example_of("b", ids_of(20), 4)]
    examples[1] = dataclasses.replace(examples[1], max_new_tokens=60)
    outcomes = subject.outcomes([Prompt((("", example),)) for example in examples])
    for example, [outcome] in zip(examples, outcomes, strict=True):
        expected = nll_of_one_pass(folder, example.token_ids, 4)
        np.testing.assert_allclose(outcome.target_nll, expected, atol=2e-5)


def test_scores_that_were_read_with_several_tables_are_not_taken_again(folder, tiny_llama):
    example = example_of("a", ids_of(20), 4)
    subjects = [Subject("base", path, "digest", "float32") for path in (folder, tiny_llama)]
    assert [subject.table_follows_length for subject in subjects] == [True, False]
    first, second = (sample_key(subject, "nll", example) for subject in subjects)
    assert first != second


def test_an_answer_comes_from_one_table(folder):
    """Prompt and answer together are within the 300 that the table is taken for."""
    model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
    session = Session(model, load_tokenizer(folder), CacheChoice().empty(model), 64)
    ids, how = ids_of(299).tolist(), Answering(max_new_tokens=1)
    (answer,) = session.answers([Question(ids)], how, SilentReporter())
    with torch.inference_mode():
        stock = load_model(folder, dtype=torch.float32)
        expected = stock(torch.tensor([[*ids, 0]]), use_cache=False).logits[0, -2].argmax()
    assert answer.token_ids == [int(expected)]


def test_a_table_that_does_not_follow_the_length_is_left_alone(tiny_llama):
    model = load_model(tiny_llama, dtype=torch.float32)
    before = model.model.rotary_emb.inv_freq.clone()
    held = HeldTable(model)
    assert not held.hold(4096)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


def test_a_table_that_was_swapped_in_is_kept(folder):
    model = load_model(folder, dtype=torch.float32)
    held = HeldTable(model)
    assert held.hold(1000)
    assert not held.hold(1000)
    swap_table(model, make_table("linear", {}, Head(16, 1e4, NATIVE, 1024)))
    before = model.model.rotary_emb.inv_freq.clone()
    assert not held.hold(500)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
