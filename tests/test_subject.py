"""One model against stock transformers: chunks, shared prefixes, candidates, rows of prompts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import prose
from evaluated import build_other_llama, opened, subject

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import GiraffeError
from giraffe_cli.evals.base import Example
from giraffe_cli.evals.order import Prompt
from giraffe_cli.evals.samples import Texts, gather_material
from giraffe_cli.evals.tasks.nll import Nll
from giraffe_cli.evals.tasks.passkey import Passkey
from giraffe_cli.model.loading import load_model

DOCUMENTS = [Document(f"doc-{i}", prose(i, 60), "prose") for i in range(4)]


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory):
    return build_other_llama(tmp_path_factory.mktemp("other-llama"))


@pytest.fixture(scope="module")
def stock(other_llama):
    return load_model(other_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def examples(other_llama):
    """Prompts of both tasks in the order the runner takes them."""
    material = gather_material(
        [subject("base", other_llama)], Texts(DOCUMENTS), EvalConfig(tasks=["nll"]), [384], 128
    )
    keyed = Passkey(depths=4, trials=2).examples(512, 0, material)
    found = [dataclasses.replace(example, num_targets=4) for example in keyed]
    found += Nll(targets=16, shuffled=False).examples(384, 0, material)
    return sorted(found, key=lambda e: e.token_ids.tolist())


def logits_after(stock, ids):
    """Logits `[tokens, V]` of one stock pass without a cache."""
    with torch.inference_mode():
        return stock(torch.tensor(np.asarray(ids, np.int64)[None]), use_cache=False).logits[0]


def greedy_tokens(stock, ids, count):
    for _ in range(count):
        ids = [*ids, int(logits_after(stock, ids)[-1].argmax())]
    return tuple(ids[-count:])


class TestOutcome:
    """One example, one model."""

    @pytest.mark.parametrize("chunk", [7, 64, 512])
    def test_target_losses_are_those_of_one_stock_pass(self, other_llama, stock, chunk):
        ids = np.arange(300, dtype=np.int32) * 37 % 384
        found = opened(other_llama, chunk).outcome(Example("k", "c", 300, ids, num_targets=50))
        with torch.inference_mode():
            logits = stock(torch.tensor(ids[None].astype(np.int64))).logits[0, -51:-1]
        labels = torch.tensor(ids[-50:].astype(np.int64))
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert found.target_nll.shape == (50,)
        # float32 sums in another order; losses are about 10 nats
        assert found.target_nll == pytest.approx(expected.numpy(), abs=1e-4)

    @pytest.mark.parametrize("chunk", [7, 512])
    def test_generation_is_stock_greedy_generation(self, other_llama, stock, chunk):
        ids = np.arange(110, dtype=np.int32) * 11 % 384
        tested = opened(other_llama, chunk)
        found = tested.outcome(Example("k", "c", 120, ids, max_new_tokens=10))
        prompt = torch.tensor(ids[None].astype(np.int64))
        settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 1}
        expected = stock.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert found.text == tested.tokenizer.decode(expected[0, 110:], skip_special_tokens=True)
        assert found.target_nll.shape == (0,)

    def test_generation_stops_at_the_end_of_text(self, other_llama, stock):
        ids = np.arange(60, dtype=np.int32)
        tested = opened(other_llama)
        example = Example("k", "c", 80, ids, max_new_tokens=6)
        whole = tested.outcome(example).text
        first = logits_after(stock, ids)[-1].argmax()
        tested.model.config.eos_token_id = [1, int(first)]
        assert len(whole) > 0
        assert tested.outcome(example).text == ""
        # what stock `generate` goes by comes first: the end of a turn often stands there alone
        tested.model.generation_config.eos_token_id = 1
        assert tested.outcome(example).text == whole
        tested.model.generation_config.eos_token_id = [1, int(first)]
        tested.model.config.eos_token_id = 1
        assert tested.outcome(example).text == ""

    def test_generation_stops_once_its_answers_are_found(self, other_llama):
        tested, ids = opened(other_llama), np.arange(60, dtype=np.int32)
        example = Example("k", "c", 80, ids, max_new_tokens=12)
        whole = tested.outcome(example).text
        early = dataclasses.replace(example, answers=(whole[:4],), stops_when_found=True)
        before = tested.fed_tokens
        assert tested.outcome(early).text.startswith(whole[:4])
        assert len(tested.outcome(early).text) < len(whole)
        assert tested.fed_tokens - before < 2 * (60 + 11)
        absent = dataclasses.replace(example, answers=("no such text",), stops_when_found=True)
        assert tested.outcome(absent).text == whole

    def test_a_loss_that_is_no_number_is_an_error(self, tiny_llama):
        broken = opened(tiny_llama)
        torch.nn.init.constant_(broken.model.model.norm.weight, float("nan"))
        example = Example("doc@1", "c", 9, np.arange(9, dtype=np.int32), num_targets=2)
        with pytest.raises(GiraffeError, match="doc@1 at 9 tokens: .* not a finite number"):
            broken.outcome(example)


class TestPrefixSharing:
    """What the cache keeps of the last prompt changes cost, never a number."""

    def test_outcomes_are_bit_equal_to_those_of_fresh_caches(self, other_llama, examples):
        sharing = opened(other_llama, 32)
        shared = [sharing.outcome(example) for example in examples]
        for example, found in zip(examples, shared, strict=True):
            alone = opened(other_llama, 32).outcome(example)
            assert found.text == alone.text
            assert np.array_equal(found.target_nll, alone.target_nll)
        assert len({outcome.target_nll.tobytes() for outcome in shared}) == len(shared)
        assert len({outcome.text for outcome in shared}) > 2

    def test_it_saves_tokens(self, other_llama, examples):
        sharing = opened(other_llama, 32)
        for example in examples:
            sharing.outcome(example)
        assert sharing.fed_tokens < 0.85 * sum(len(e.token_ids) for e in examples)

    def test_a_repeated_prompt_is_scored_from_its_last_chunk(self, other_llama, examples):
        twice = opened(other_llama, 32)
        first, before = twice.outcome(examples[0]), twice.fed_tokens
        second = twice.outcome(examples[0])
        assert second.text == first.text
        assert twice.fed_tokens - before <= 32 + 12

    def test_a_prompt_that_is_a_prefix_of_the_last_one(self, other_llama):
        ids = np.arange(200, dtype=np.int32)
        sharing = opened(other_llama, 32)
        sharing.outcome(Example("long", "c", 200, ids, num_targets=8))
        short = Example("short", "c", 96, ids[:96], num_targets=40)
        alone = opened(other_llama, 32).outcome(short)
        assert np.array_equal(sharing.outcome(short).target_nll, alone.target_nll)

    def test_equal_prompts_are_read_once(self, other_llama):
        ids = np.arange(300, dtype=np.int32)
        asked = [
            Example("curve", "c", 300, ids, num_targets=299),
            Example("nll", "c", 300, ids, num_targets=16),
            Example("key", "c", 310, ids, max_new_tokens=5, candidates=((7, 8), (9, 1))),
        ]
        tested = opened(other_llama, 32)
        (found,) = tested.outcomes([Prompt(tuple(("", example) for example in asked))])
        assert tested.fed_tokens == 300 + (1 + 1) + 4
        for example, outcome in zip(asked, found, strict=True):
            alone = opened(other_llama, 32).outcome(example)
            assert outcome.text == alone.text
            assert outcome.candidate_nll == pytest.approx(alone.candidate_nll, abs=1e-5)
            assert outcome.target_nll == pytest.approx(alone.target_nll, abs=1e-5)

    @pytest.mark.parametrize("prompts", [True, False])
    @pytest.mark.parametrize("candidates", [True, False])
    def test_it_can_be_turned_off_and_gives_the_same(
        self, other_llama, examples, prompts, candidates
    ):
        usual = opened(other_llama, 32)
        other = opened(other_llama, 32, shares_prompts=prompts, shares_candidates=candidates)
        for example in examples:
            first, second = usual.outcome(example), other.outcome(example)
            assert second.text == first.text
            assert second.candidate_greedy == first.candidate_greedy
            assert second.target_nll == pytest.approx(first.target_nll, abs=1e-4)
            assert second.candidate_nll == pytest.approx(first.candidate_nll, abs=1e-4)
        assert (other.fed_tokens > 1.2 * usual.fed_tokens) == (not (prompts and candidates))


CANDIDATES = ((5, 6, 7), (300, 2), (9,), (17, 17, 17, 17, 4))


class TestCandidates:
    """Continuations in one row behind a KV cache: each sees the prompt and itself."""

    @pytest.mark.parametrize("size", [3, 40, 200])
    def test_each_is_what_stock_gives_it_alone_without_a_cache(self, other_llama, stock, size):
        ids = np.arange(size, dtype=np.int32) * 31 % 384
        found = opened(other_llama, 32).outcome(Example("k", "c", 300, ids, candidates=CANDIDATES))
        for candidate, nll in zip(CANDIDATES, found.candidate_nll, strict=True):
            logits = logits_after(stock, [*ids, *candidate])[size - 1 : -1]
            expected = torch.nn.functional.cross_entropy(
                logits, torch.tensor(candidate), reduction="sum"
            )
            assert nll == pytest.approx(float(expected), abs=1e-4)  # sums of up to 60 nats

    def test_each_is_what_it_is_when_fed_alone(self, other_llama):
        ids = np.arange(70, dtype=np.int32)
        tested = opened(other_llama, 32)
        together = tested.outcome(Example("k", "c", 300, ids, candidates=CANDIDATES))
        for n, candidate in enumerate(CANDIDATES):
            alone = opened(other_llama, 32).outcome(
                Example("k", "c", 300, ids, candidates=(candidate,))
            )
            assert together.candidate_nll[n] == pytest.approx(alone.candidate_nll[0], abs=1e-5)

    def test_keys_and_values_are_left_as_they_were(self, other_llama):
        ids = np.arange(70, dtype=np.int32)
        tested, plain = opened(other_llama, 32), opened(other_llama, 32)
        tested.outcome(Example("k", "c", 99, ids, candidates=CANDIDATES, max_new_tokens=4))
        plain.outcome(Example("k", "c", 99, ids))
        for ours, theirs in zip(tested.kept.layers, plain.kept.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)

    def test_of_one_token_they_are_read_off_the_prompt(self, other_llama, stock):
        ids, candidates = np.arange(50, dtype=np.int32), ((5,), (6,), (300,))
        tested = opened(other_llama)
        found = tested.outcome(Example("k", "c", 99, ids, candidates=candidates))
        assert tested.fed_tokens == 50
        expected = -logits_after(stock, ids)[-1].log_softmax(-1)[[5, 6, 300]]
        assert found.candidate_nll == pytest.approx(expected.tolist(), abs=1e-4)
        assert found.candidate_greedy == (False, False, False)

    def test_greedy_ones_are_known_and_begin_the_generation(self, other_llama, stock):
        ids = np.arange(50, dtype=np.int32)
        truth = greedy_tokens(stock, ids, 5)
        half = (*truth[:3], (truth[3] + 1) % 384, truth[4])
        for candidates, greedy in (((half, truth), (False, True)), ((half,), (False,))):
            tested = opened(other_llama)
            example = Example("k", "c", 99, ids, candidates=candidates, max_new_tokens=5)
            found = tested.outcome(example)
            assert found.candidate_greedy == greedy
            alone = opened(other_llama).outcome(dataclasses.replace(example, candidates=()))
            assert found.text == alone.text
        # 4 + 4 of the candidates, and nothing more: the truth is the generation
        whole = opened(other_llama)
        whole.outcome(Example("k", "c", 99, ids, candidates=(half, truth), max_new_tokens=5))
        assert whole.fed_tokens == 50 + 4 + 4


class TestRows:
    """Short prompts side by side."""

    ASKED = (
        Example("nll", "c", 20, np.arange(20, dtype=np.int32), num_targets=8),
        Example("one", "c", 1, np.asarray([3], np.int32), candidates=((4, 5), (6,))),
        Example("rank", "c", 31, np.arange(31, dtype=np.int32) * 5, candidates=CANDIDATES),
        Example("text", "c", 12, np.arange(12, dtype=np.int32) + 40, max_new_tokens=9),
        Example("all", "c", 64, np.arange(64, dtype=np.int32) * 3, 63, 4, candidates=CANDIDATES),
    )

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_each_prompt_is_what_it_is_alone(self, other_llama, count):
        asked = self.ASKED[-count:]
        found = opened(other_llama).outcomes([Prompt((("", e),)) for e in asked])
        for example, (outcome,) in zip(asked, found, strict=True):
            alone = opened(other_llama).outcome(example)
            assert outcome.text == alone.text
            assert outcome.candidate_greedy == alone.candidate_greedy
            assert outcome.target_nll == pytest.approx(alone.target_nll, abs=1e-5)
            assert outcome.candidate_nll == pytest.approx(alone.candidate_nll, abs=1e-4)

    def test_compared_states_are_those_before_the_targets(self, other_llama):
        asked = [dataclasses.replace(e, compared=True) for e in (self.ASKED[0], self.ASKED[4])]
        found = opened(other_llama).outcomes([Prompt((("", e),)) for e in asked])
        for example, (outcome,) in zip(asked, found, strict=True):
            alone = opened(other_llama).outcome(example).states
            assert outcome.states.shape == (example.num_targets, 64)
            assert np.abs(outcome.states - alone).max() < 1e-4
