"""KL between base and model, against the full logits of stock models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from conftest import build_tiny_llama

from giraffe_cli.checkpoint import inspect
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.cache import OutcomeCache, sample_key, states_path
from giraffe_cli.evals.divergence import add_divergences, divergence, read_head
from giraffe_cli.evals.open_subject import OpenSubject
from giraffe_cli.evals.samples import Batch
from giraffe_cli.evals.subject import Subject
from giraffe_cli.evals.tasks.nll import Nll
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.loading import load_model, load_tokenizer
from giraffe_cli.progress import SilentReporter

IDS = np.arange(100, dtype=np.int32) * 37 % 384
COMPARED = Example("k", "doc", 128, IDS, num_targets=40, compared=True)


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory):
    """The same tokenizer, another width, a head of its own, clear-cut predictions."""
    folder = tmp_path_factory.mktemp("wide-llama")
    build_tiny_llama(folder, hidden_size=96, head_dim=16, tie_word_embeddings=False)
    model = load_model(folder, dtype=torch.float32)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5)
    model.save_pretrained(folder)
    return folder


def subject(name, folder, dtype="float32"):
    return Subject(name, folder, inspect(str(folder), folder).digest, dtype)


def read(tested, cache, example=COMPARED):
    """What the runner does with an example: the outcome through the cache."""
    dtype = getattr(torch, tested.dtype)
    model = load_model(tested.path, dtype=dtype, attn_implementation=register_attention())
    outcomes = OutcomeCache(cache, tested, "nll")
    key = sample_key(tested, "nll", example)
    outcomes.put(key, OpenSubject(model, load_tokenizer(tested.path)).outcome(example))
    return {("nll", example.length, example.key): outcomes.get(key)}


def full_logits(folder):
    """`[40, V]` of the targets, from one stock pass, in float64."""
    with torch.inference_mode():
        logits = load_model(folder, dtype=torch.float32)(torch.tensor(IDS[None].astype(int))).logits
    return logits[0, -41:-1].double()


def diverged(base, tested, cache, example=COMPARED):
    outcomes = {s.name: read(s, cache, example) for s in (base, tested)}
    batches = [Batch("nll", Nll(), [example])]
    add_divergences([base, tested], batches, outcomes, cache, SilentReporter())
    return {n: found["nll", 128, example.key].divergence for n, found in outcomes.items()}


class TestAgainstFullLogits:
    def test_every_target(self, tiny_llama, other_llama, tmp_path):
        found = diverged(subject("base", tiny_llama), subject("checkpoint", other_llama), tmp_path)
        p, q = full_logits(tiny_llama), full_logits(other_llama)
        expected = torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
        )
        assert found["base"] is None
        assert found["checkpoint"].shape == (40,)
        assert expected.min() > 0.1  # the direction and the weights matter
        # float32 states read in chunks against one stock pass
        assert found["checkpoint"] == pytest.approx(expected.numpy(), abs=2e-4)

    def test_it_is_no_symmetric_measure(self, tiny_llama, other_llama, tmp_path):
        one = diverged(subject("base", tiny_llama), subject("checkpoint", other_llama), tmp_path)
        two = diverged(subject("base", other_llama), subject("checkpoint", tiny_llama), tmp_path)
        assert abs(one["checkpoint"].mean() - two["checkpoint"].mean()) > 0.01

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_model_against_itself_is_exactly_zero(self, tiny_llama, tmp_path, dtype):
        base, same = (subject(name, tiny_llama, dtype) for name in ("base", "checkpoint"))
        assert diverged(base, same, tmp_path)["checkpoint"].tolist() == [0.0] * 40

    def test_two_tokens_by_hand(self):
        """p = (1/2, 1/2), q = (3/4, 1/4): KL = ln 2 - ln(3)/2."""
        states, base_head = np.ones((1, 1), np.float32), torch.zeros(2, 1)
        head = torch.log(torch.tensor([[0.75], [0.25]]))
        found = divergence(states, base_head, states, head)
        assert found == pytest.approx([np.log(2) - np.log(3) / 2], abs=1e-6)

    def test_chunks_change_nothing(self):
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(300, 8, generator=generator).numpy()
        heads = torch.randn(2, 50, 8, generator=generator)
        whole = divergence(states, heads[0], states, heads[1])
        parts = [divergence(states[i : i + 1], heads[0], states[i : i + 1], heads[1])[0]
                 for i in (0, 127, 128, 299)]  # fmt: skip
        assert whole.shape == (300,)
        assert whole[[0, 127, 128, 299]] == pytest.approx(parts, abs=1e-5)


class TestTheHead:
    def test_a_tied_one_is_the_embedding(self, tiny_llama):
        expected = load_model(tiny_llama, dtype=torch.float32).model.embed_tokens.weight
        assert torch.equal(read_head(subject("base", tiny_llama)), expected)

    def test_one_of_its_own(self, other_llama):
        expected = load_model(other_llama, dtype=torch.float32).lm_head.weight
        assert torch.equal(read_head(subject("base", other_llama)), expected)

    def test_is_rounded_as_the_model_was(self, tiny_llama):
        rounded = read_head(subject("base", tiny_llama, "bfloat16"))
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded, rounded.bfloat16().float())
        assert not torch.equal(rounded, read_head(subject("base", tiny_llama)))

    def test_another_vocabulary_is_refused(self, tiny_llama, tmp_path):
        longer = build_tiny_llama(tmp_path / "longer", vocab_size=400)
        with pytest.raises(InvalidInput, match="predicts 400 tokens, the base .* 384"):
            diverged(subject("base", tiny_llama), subject("checkpoint", longer), tmp_path)


class TestResuming:
    def test_states_are_of_no_use_in_memory_and_lie_in_a_file(self, tiny_llama, tmp_path):
        base = subject("base", tiny_llama)
        (outcome,) = read(base, tmp_path).values()
        assert outcome.states is None
        path = states_path(tmp_path, sample_key(base, "nll", COMPARED))
        assert np.load(path).shape == (40, 64)

    def test_a_sample_whose_states_are_gone_is_run_again(self, tiny_llama, tmp_path):
        base = subject("base", tiny_llama)
        read(base, tmp_path)
        key = sample_key(base, "nll", COMPARED)
        assert OutcomeCache(tmp_path, base, "nll").get(key) is not None
        states_path(tmp_path, key).unlink()
        assert OutcomeCache(tmp_path, base, "nll").get(key) is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"key": "other"},
            {"token_ids": IDS[::-1].copy()},
            {"num_targets": 39},
            {"max_new_tokens": 1},
            {"candidates": ((1, 2),)},
            {"answers": ("x",), "stops_when_found": True},
        ],
    )
    def test_whatever_decides_an_outcome_is_in_its_key(self, tiny_llama, changes):
        base = subject("base", tiny_llama)
        key = sample_key(base, "nll", COMPARED)
        assert sample_key(base, "nll", dataclasses.replace(COMPARED, **changes)) != key

    @pytest.mark.parametrize("changes", [{"digest": "0" * 64}, {"dtype": "bfloat16"}])
    def test_so_is_the_model_and_the_type_it_computes_in(self, tiny_llama, changes):
        base = subject("base", tiny_llama)
        key = sample_key(base, "nll", COMPARED)
        assert sample_key(dataclasses.replace(base, **changes), "nll", COMPARED) != key
        assert sample_key(dataclasses.replace(base, name="checkpoint"), "nll", COMPARED) == key
        assert sample_key(base, "positions", COMPARED) != key

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "chat_template.jinja"])
    def test_what_writes_text_belongs_to_what_writes_answers(self, tmp_path, name):
        """Generated text is decoded and ended by these files; a loss is not."""
        asked = dataclasses.replace(COMPARED, max_new_tokens=4)
        before, after = (Subject("base", tmp_path / n, "d", "float32") for n in ("one", "two"))
        for folder, text in ((before.path, "{}"), (after.path, "{ }")):
            folder.mkdir()
            (folder / name).write_text(text)
        assert sample_key(before, "niah", asked) != sample_key(after, "niah", asked)
        assert sample_key(before, "nll", COMPARED) == sample_key(after, "nll", COMPARED)

    def test_a_sample_that_was_not_compared_does_not_stand_for_one_that_is(self, tiny_llama):
        base = subject("base", tiny_llama)
        alone = Example("k", "doc", 128, IDS, num_targets=40)
        assert sample_key(base, "nll", alone) != sample_key(base, "nll", COMPARED)

    def test_finished_ones_are_read_back(self, tiny_llama, other_llama, tmp_path):
        pair = subject("base", tiny_llama), subject("checkpoint", other_llama)
        first = diverged(*pair, tmp_path)["checkpoint"]
        outcomes = {s.name: {("nll", 128, "k"): Outcome(np.zeros(40), "")} for s in pair}
        for file in (tmp_path / "states").iterdir():
            file.unlink()
        batches = [Batch("nll", Nll(), [COMPARED])]
        add_divergences(pair, batches, outcomes, tmp_path, SilentReporter())
        assert np.array_equal(outcomes["checkpoint"]["nll", 128, "k"].divergence, first)

    @pytest.mark.parametrize("damage", ["zeros", "short"])
    def test_damaged_ones_are_computed_again(self, tiny_llama, other_llama, tmp_path, damage):
        pair = subject("base", tiny_llama), subject("checkpoint", other_llama)
        first = diverged(*pair, tmp_path)["checkpoint"]
        (path,) = (tmp_path / "divergence").iterdir()
        data = path.read_bytes()
        path.write_bytes(data[:128] + bytes(len(data) - 160) + data[-32:])
        if damage == "short":
            path.write_bytes(data[:20])
        assert np.array_equal(diverged(*pair, tmp_path)["checkpoint"], first)
        assert path.read_bytes() == data

    def test_damaged_states_are_named(self, tiny_llama, other_llama, tmp_path):
        pair = subject("base", tiny_llama), subject("checkpoint", other_llama)
        outcomes = {s.name: read(s, tmp_path) for s in pair}
        states_path(tmp_path, sample_key(pair[0], "nll", COMPARED)).write_bytes(b"")
        with pytest.raises(GiraffeError, match=r"states/\w+\.npy cannot be read"):
            add_divergences(
                pair, [Batch("nll", Nll(), [COMPARED])], outcomes, tmp_path, SilentReporter()
            )

    def test_without_a_base_nothing_is_compared(self, tiny_llama, tmp_path):
        alone = subject("checkpoint", tiny_llama)
        outcomes = {"checkpoint": read(alone, tmp_path)}
        batches = [Batch("nll", Nll(), [COMPARED])]
        add_divergences([alone], batches, outcomes, tmp_path, SilentReporter())
        assert outcomes["checkpoint"]["nll", 128, "k"].divergence is None
