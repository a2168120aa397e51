"""Answers against transformers' own `generate`, on the tiny model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from conftest import prose
from evaluated import build_other_llama
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing

from giraffe_cli.errors import GiraffeError, InvalidInput, UsageError
from giraffe_cli.inference.caches import CacheChoice
from giraffe_cli.inference.prompts import (
    Prompt,
    check_window,
    common_tokens,
    next_length,
    prompts,
)
from giraffe_cli.inference.sampling import Sampling
from giraffe_cli.inference.session import Answering, Session
from giraffe_cli.inference.text import AnswerText
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.loading import end_tokens, load_model, load_tokenizer
from giraffe_cli.progress import SilentReporter

IDS = [token * 37 % 384 for token in range(301)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights that disagree at every token, no end of text."""
    return build_other_llama(tmp_path_factory.mktemp("other-llama"))


@pytest.fixture(scope="module")
def stock(folder):
    return load_model(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture
def session(folder, tokenizer):
    def opened(chunk=64, **kept):
        model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
        return Session(model, tokenizer, CacheChoice(**kept).empty(model), chunk)

    return opened


def sentencepiece_like(decoder):
    """Words with ▁ for a space, bytes for what they lack; `decoder` takes a text's first space."""
    of_bytes = [f"<0x{n:02X}>" for n in (0xC3, 0xA9, 0xE2, 0x82, 0x41)]
    names = ["<s>", "▁the", "▁a", "▁", "cat", *of_bytes]
    model = models.BPE({name: n for n, name in enumerate(names)}, [], byte_fallback=True)
    backend = Tokenizer(model)
    backend.add_special_tokens(["<s>"])
    characters = decoders.ByteFallback()
    if decoder == "metaspace":
        backend.decoder = decoders.Sequence([characters, decoders.Metaspace()])
    else:
        spaces, first = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
        backend.decoder = decoders.Sequence([spaces, characters, decoders.Fuse(), first])
    return backend


def answer(session, ids, **how):
    (found,) = session.answers([Prompt(ids)], Answering(**how), SilentReporter())
    return found


def by_transformers(stock, ids, count, **how):
    prompt = torch.tensor([ids])
    settings = {"max_new_tokens": count, "pad_token_id": 1, "do_sample": False, **how}
    found = stock.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    return found[0, len(ids) :].tolist()


class TestTokens:
    """Which tokens come."""

    @pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
    def test_greedy_tokens_are_those_of_transformers(self, session, stock, chunk):
        expected = by_transformers(stock, IDS, 30)
        found = answer(session(chunk), IDS, max_new_tokens=30)
        assert found.token_ids == expected
        assert len(set(expected)) > 5
        assert found.finish_reason == "length"
        assert (found.prompt_tokens, found.read_tokens) == (301, 301)

    @pytest.mark.parametrize(
        "knobs", [{}, {"top_k": 20}, {"top_p": 0.6}, {"top_k": 50, "top_p": 0.9}]
    )
    def test_drawn_tokens_are_those_of_transformers_from_the_same_seed(self, session, stock, knobs):
        torch.manual_seed(5)
        settings = {"do_sample": True, "temperature": 1.7, "top_k": 0, "top_p": 1.0, **knobs}
        expected = by_transformers(stock, IDS, 25, **settings)
        sampling = Sampling(temperature=1.7, seed=5, **knobs)
        found = answer(session(), IDS, max_new_tokens=25, sampling=sampling)
        assert found.token_ids == expected

    def test_another_seed_draws_others(self, session):
        opened = session()
        drawn = [
            answer(opened, IDS, max_new_tokens=12, sampling=Sampling(2.0, seed=seed)).token_ids
            for seed in (1, 1, 2)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_an_end_of_text_ends_it_and_is_no_part_of_it(self, session, stock):
        third = by_transformers(stock, IDS, 3)[-1]
        opened = session()
        opened.ends = {third}
        found = answer(opened, IDS, max_new_tokens=9)
        assert found.finish_reason == "end"
        assert third not in found.token_ids
        assert len(found.token_ids) == by_transformers(stock, IDS, 3).index(third)

    @pytest.mark.parametrize(
        ("generation", "config", "ends"),
        [([5, 7], 5, {5, 7}), (7, 5, {7}), (None, 5, {5}), (None, [5, 7], {5, 7})],
    )
    def test_what_ends_a_text_is_the_generation_configs_else_the_models(
        self, generation, config, ends
    ):
        """Llama 3's chat models name two ids there, of which config.json may have the first."""
        model = SimpleNamespace(
            generation_config=SimpleNamespace(eos_token_id=generation),
            config=SimpleNamespace(eos_token_id=config),
        )
        assert end_tokens(model) == ends

    @pytest.mark.parametrize("name", ["bfloat16", "int8"])
    def test_a_smaller_cache_begins_with_the_same_token(self, session, stock, name):
        found = answer(session(dtype=name), IDS, max_new_tokens=1)
        assert found.token_ids == by_transformers(stock, IDS, 1)

    def test_logits_that_are_no_numbers_are_an_error(self, session):
        broken = session()
        torch.nn.init.constant_(broken.model.model.norm.weight, float("nan"))
        with pytest.raises(GiraffeError, match="logits that are not finite"):
            answer(broken, IDS, max_new_tokens=2)


class TestSeveralQuestions:
    """What prompts share is read once."""

    def test_a_small_cache_closes_the_same_whatever_else_is_asked(self, session):
        """Logits bit for bit: a chunk that ends elsewhere reads other closed groups."""

        def states(tails):
            opened, found = session(dtype="int4"), []
            feed = opened.feed
            opened.feed = lambda ids, kept: found.append(feed(ids, kept)) or found[-1]
            asked = [Prompt([*IDS, *tail]) for tail in tails]
            opened.answers(asked, Answering(1), SilentReporter())
            return found[-1][-1]

        alone = states([[5, 6]])
        assert torch.equal(states([[9, 8], [5, 6]]), alone)
        assert torch.equal(states([[*range(40)], [5, *range(70)], [5, 6]]), alone)

    @pytest.mark.parametrize("name", ["auto", "int8", "int4"])
    def test_each_answer_is_that_of_a_session_of_its_own(self, session, name):
        asked = [Prompt([*IDS, *tail]) for tail in ([5, 6], [9, 8, 7, 300], [5, 7])]
        found = session(dtype=name).answers(asked, Answering(12), SilentReporter())
        shared = 301 if name == "auto" else 256  # whole chunks of 64
        assert [a.read_tokens for a in found] == [303, 305 - shared, 303 - shared]
        again = session(dtype=name).answers([*reversed(asked)], Answering(12), SilentReporter())
        assert [a.token_ids for a in again] == [a.token_ids for a in reversed(found)]
        assert len({tuple(a.token_ids) for a in found}) > 1
        for prompt, together in zip(asked, found, strict=True):
            alone = answer(session(dtype=name), prompt.token_ids, max_new_tokens=12)
            assert alone.token_ids == together.token_ids

    def test_a_session_answers_again_as_it_did(self, session):
        opened = session(dtype="int4")
        first = answer(opened, IDS, max_new_tokens=8)
        answer(opened, [*reversed(IDS)], max_new_tokens=8)
        assert answer(opened, IDS, max_new_tokens=8).token_ids == first.token_ids

    @pytest.mark.parametrize(
        ("rows", "count"),
        [([[1, 2, 3]], 0), ([[1, 2, 3], [1, 2, 4, 5]], 2), ([[1, 2], [1, 2]], 1), ([[7], [8]], 0)],
    )
    def test_common_tokens_leave_one_to_read(self, rows, count):
        assert common_tokens([Prompt(row) for row in rows]) == count


class TestPrompts:
    """Text to token ids."""

    def test_nothing_is_not_continued_from_the_beginning_token_alone(self, tokenizer):
        with pytest.raises(InvalidInput, match="the prompt is empty"):
            prompts(tokenizer, "")

    def test_a_text_begins_as_the_tokenizer_begins_it(self, tokenizer):
        (found,) = prompts(tokenizer, "the sky")
        assert found.token_ids == tokenizer("the sky").input_ids
        assert found.token_ids[0] == tokenizer.bos_token_id

    def test_questions_stand_behind_the_document(self, tokenizer):
        first, second = prompts(tokenizer, "Sky.", ["Who?", "When?"])
        assert first.token_ids == tokenizer("Sky.\n\nWho?").input_ids
        assert second.question == "When?"

    def test_a_chat_template_wraps_both(self, folder, tokenizer):
        with_template = load_tokenizer(folder)
        with_template.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %} A:"
        (found,) = prompts(with_template, "Sky.", ["Who?"], chat=True)
        assert with_template.decode(found.token_ids) == "[Sky.\n\nWho?] A:"
        with pytest.raises(InvalidInput, match="no chat template"):
            prompts(tokenizer, "Sky.", ["Who?"], chat=True)

    @pytest.mark.parametrize(
        ("template", "told"),
        [
            ("{{ raise_exception('roles must alternate') }}", "fails: roles must alternate"),
            ("{% if x %}", "fails: "),
            ({"rag": "a", "tools": "b"}, "fails: "),
            ("{{ '' }}", "writes nothing for a user's turn"),
        ],
    )
    def test_a_chat_template_that_fails_is_named(self, folder, template, told):
        with_template = load_tokenizer(folder)
        with_template.chat_template = template
        with pytest.raises(InvalidInput, match=f"the tokenizer's chat template {told}"):
            prompts(with_template, "Sky.", chat=True)

    def test_what_exceeds_the_window_is_refused_with_the_line_that_helps(self):
        asked = [Prompt([0] * 50), Prompt([0] * 120)]
        check_window(asked, 8, 128, "m")
        with pytest.raises(InvalidInput) as caught:
            check_window(asked, 20, 128, "m")
        assert "120 tokens, with 20 new ones 140; the window of m is 128" in caught.value.message
        assert (
            caught.value.hint == "giraffe extend --model m --target-len 1k, or --max-new-tokens 8"
        )

    def test_where_a_prompt_fills_the_window_no_answer_is_proposed(self):
        with pytest.raises(InvalidInput) as caught:
            check_window([Prompt([0] * 128)], 1, 128, "m")
        assert caught.value.hint == "giraffe extend --model m --target-len 1k"
        with pytest.raises(InvalidInput) as caught:
            check_window([Prompt([0] * 128)], 1, 128, "my run/model", "--on-existing-rope compose")
        assert caught.value.hint == (
            "giraffe extend --model 'my run/model' --target-len 1k --on-existing-rope compose"
        )

    def test_what_a_tokenizer_puts_behind_a_text_is_no_part_of_a_prompt(self, folder):
        """An end of text would have the model begin another one."""
        ends = load_tokenizer(folder)
        begin, end = ends.bos_token, ends.eos_token
        ids = [(token, ends.convert_tokens_to_ids(token)) for token in (begin, end)]
        ends.backend_tokenizer.post_processor = TemplateProcessing(
            f"{begin} $A {end} {end}", None, ids
        )
        plain = ends.backend_tokenizer.encode("the sky", add_special_tokens=False).ids
        assert [p.token_ids for p in prompts(ends, "the sky")] == [[ids[0][1], *plain]]

    @pytest.mark.parametrize(
        ("tokens", "length"), [(5, 1024), (1025, 2048), (16384, 16384), (70000, 131072)]
    )
    def test_the_next_length_holds_the_tokens(self, tokens, length):
        assert next_length(tokens) == length


class TestText:
    """Tokens to text while they come."""

    def shown(self, tokenizer, text, stops):
        answer_text = AnswerText(tokenizer, stops)
        pieces = []
        for token in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
            pieces.append(answer_text.add(token))
            if answer_text.stopped:
                break
        pieces.append(answer_text.rest())
        assert answer_text.shown == "".join(pieces)
        return pieces, answer_text.stopped

    def test_all_pieces_together_are_the_text(self, tokenizer):
        text = prose(3, 9) + " größer 🦒 日本語\n\n  indented"
        pieces, stopped = self.shown(tokenizer, text, [])
        assert "".join(pieces) == text
        assert not stopped
        assert sum(bool(piece) for piece in pieces) > 20
        assert "�" not in "".join(pieces)

    @pytest.mark.parametrize("stop", ["sky", "s", "e sky b", "\n\n", "🦒"])
    def test_a_stop_string_ends_it_wherever_tokens_are_cut(self, tokenizer, stop):
        text = "the sky blue s and 🦒\n\nthere"
        pieces, stopped = self.shown(tokenizer, text, ["never", stop])
        assert stopped
        assert "".join(pieces) == text[: text.index(stop)]

    def test_the_first_of_two_stop_strings_counts(self, tokenizer):
        pieces, _ = self.shown(tokenizer, "green and blue", ["blue", "and"])
        assert "".join(pieces) == "green "

    def test_bytes_that_are_no_character_end_no_answer(self):
        """Llama 2's tokens of single bytes: é, half a character, `a`. What stands is not taken back
        as transformers does, which makes all three bytes of the run U+FFFD."""
        names = ["<0xC3>", "<0xA9>", "<0xC5>", "a", "b"]
        model = models.BPE({name: n for n, name in enumerate(names)}, [], byte_fallback=True)
        backend = Tokenizer(model)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        answer = AnswerText(SimpleNamespace(backend_tokenizer=backend))
        assert [answer.add(token) for token in range(5)] == ["", "é", "", "\ufffda", "b"]

    @pytest.mark.parametrize("special", [True, False])
    def test_a_stop_string_that_is_one_added_token_ends_it(self, folder, special):
        with_token = load_tokenizer(folder)
        backend = with_token.backend_tokenizer
        backend.add_tokens([AddedToken("<|im_end|>", special=special)])
        end = backend.token_to_id("<|im_end|>")
        answer = AnswerText(with_token, ["end", "<|im_end|>"])
        ids = backend.encode("the sky e", add_special_tokens=False).ids
        shown = [answer.add(token) for token in [*ids, end]]
        assert answer.stopped
        assert "".join(shown) == "the sky e"
        assert answer.rest() == ""

    @pytest.mark.parametrize("decoder", ["llama 2", "metaspace"])
    @pytest.mark.parametrize(
        "prompt",
        [
            "<s>",
            "<s> ▁the",
            "▁the <0xC3> <0xA9>",
            "▁a ▁ ▁",
            "<s> ▁",
            "▁a" + " <s>" * 9,
            "<0xC3> <0xA9> " * 10 + "<0x41>",
        ],
    )
    @pytest.mark.parametrize(
        "following",
        [
            "▁the cat ▁the",
            "cat ▁the",
            "▁ ▁ ▁the",
            "<s> ▁the",
            "<0xC3> <0xA9> ▁the",
            "<0xC3> ▁the cat",
            "<0xE2> <0x82> cat ▁the",
        ],
    )
    def test_the_text_is_what_the_answer_adds_to_the_prompts(self, decoder, prompt, following):
        """With a decoder that takes the space from the beginning of a text, as Llama 2's does."""
        backend = sentencepiece_like(decoder)
        ids, more = ([backend.token_to_id(name) for name in t.split()] for t in (prompt, following))
        answer = AnswerText(SimpleNamespace(backend_tokenizer=backend), prompt=ids)
        shown = "".join(answer.add(token) for token in more)
        before, whole = (backend.decode(i, skip_special_tokens=True) for i in (ids, [*ids, *more]))
        if "\ufffd" not in whole:
            assert before + shown == whole
            return
        # half a character makes U+FFFD of one that was shown before it; the rest is the same
        assert shown.startswith("\ufffd")
        assert shown.lstrip("\ufffd") == whole.rpartition("\ufffd")[2]

    def test_a_character_that_the_prompt_begins_is_the_answers(self, tokenizer):
        """Bytes of one giraffe; then a prompt whose own text ends in U+FFFD."""
        ids = tokenizer.backend_tokenizer.encode("🦒", add_special_tokens=False).ids
        assert len(ids) > 1
        answer = AnswerText(tokenizer, prompt=ids[:-1])
        assert answer.add(ids[-1]) == "🦒"
        (a, *_) = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
        damaged = tokenizer.backend_tokenizer.encode("a\ufffd", add_special_tokens=False).ids
        assert AnswerText(tokenizer, prompt=damaged).add(a) == "a"

    def test_a_long_prompt_is_not_decoded_as_a_whole(self, tokenizer):
        ids = tokenizer.backend_tokenizer.encode("the sky " * 500, add_special_tokens=False).ids
        assert len(AnswerText(tokenizer, prompt=ids).tokens) < 20

    def test_what_only_begins_like_a_stop_string_is_shown_in_the_end(self, tokenizer):
        pieces, stopped = self.shown(tokenizer, "the sky", ["sky blue"])
        assert "".join(pieces) == "the sky"
        assert not stopped


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"top_p": 0.9}, "--top-p without effect"),
        ({"top_k": 5, "seed": 3}, "--top-k, --seed without effect"),
        ({"temperature": -1.0}, "--temperature -1"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top-p 1.5"),
        ({"temperature": 1.0, "top_k": -1}, "--top-k -1"),
    ],
)
def test_sampling_refuses_what_means_nothing(knobs, said):
    with pytest.raises(UsageError) as caught:
        Sampling(**knobs)
    assert said in caught.value.message
