"""Questions answered one after the other, what they begin with read once.

    read the tokens that all prompts share  →  mark
    for each prompt:  back to the mark  →  read the rest  →  answer, token by token

A prompt's first token comes from the state of its last; no logits exist for any other. Where a
chunk ends shows in what a small cache closed before the next one, so there the shared part ends
with a whole chunk: an answer is the one that its question gets alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from giraffe_cli.errors import GiraffeError
from giraffe_cli.inference.prompts import Prompt, common_tokens
from giraffe_cli.inference.sampling import Choose, Sampling
from giraffe_cli.inference.text import AnswerText
from giraffe_cli.model.held_table import HeldTable
from giraffe_cli.model.loading import end_tokens
from giraffe_cli.model.reading import feed, most_probable, read_chunks, wide_logits
from giraffe_cli.progress import Bar, Reporter

if TYPE_CHECKING:
    import torch

    from giraffe_cli.model.key_values import KeyValues
    from giraffe_cli.model.stored import StoredKeyValues

Show = Callable[[str], None]
"""Takes text of the answer as it comes."""


@dataclass(frozen=True)
class Answering:
    """How answers are made."""

    max_new_tokens: int = 256
    sampling: Sampling = Sampling()  # noqa: RUF009  (frozen)
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What followed one prompt; seconds of the wall clock."""

    question: str | None
    text: str
    token_ids: list[int]
    finish_reason: str
    """`end` of text, `stop` string or `length`."""
    prompt_tokens: int
    read_tokens: int
    """Of them, those that went through the model for this answer; the first answer counts what
    all prompts share."""
    seconds_to_first_token: float
    seconds_of_decoding: float
    """After the first token."""

    def to_json(self) -> dict[str, Any]:
        """All fields, and tokens a second after the first (None where there is one)."""
        after_first = len(self.token_ids) - 1
        speed = after_first / self.seconds_of_decoding if after_first > 0 else None
        return {**vars(self), "decode_tokens_per_second": speed}


class Session:
    """A loaded model with room for the keys and values of one prompt and its answer."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        kept: KeyValues | StoredKeyValues,
        chunk: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`kept` is an empty cache; `chunk` tokens are fed at a time; `clock` tells seconds."""
        self.model, self.tokenizer, self.kept, self.chunk = model, tokenizer, kept, chunk
        self.clock = clock
        self.feed, self.table = partial(feed, model), HeldTable(model)
        self.ends = end_tokens(model)

    def answers(
        self,
        prompts: Sequence[Prompt],
        how: Answering,
        reporter: Reporter,
        show: Callable[[int, str], None] = lambda number, text: None,
    ) -> list[Answer]:
        """Answer every prompt; `show` hears which one (from 0) and its text as it comes.

        Raises:
            GiraffeError: the model gave logits that are no numbers.
        """
        import torch

        shared = self._shared(prompts)
        longest = max(len(prompt.token_ids) for prompt in prompts) + how.max_new_tokens
        self.kept.clear()
        self.kept.reserve(longest)
        self.table.hold(longest)
        with torch.inference_mode():
            started = self.clock()
            if shared:
                self._read(prompts[0].token_ids[:shared], 0, reporter)
            mark, found = self.kept.mark(), []
            for number, prompt in enumerate(prompts):
                started = self.clock() if number else started
                self.kept.rewind(mark)
                state = self._read(prompt.token_ids, shared, reporter)
                read = len(prompt.token_ids) - (shared if number else 0)
                found.append(self._answer(prompt, state, read, started, how, partial(show, number)))
        return found

    def _shared(self, prompts: Sequence[Prompt]) -> int:
        """Tokens that are read once; whole chunks of them where a cache is not exact."""
        from giraffe_cli.model.key_values import KeyValues

        shared = common_tokens(prompts)
        return shared if isinstance(self.kept, KeyValues) else shared // self.chunk * self.chunk

    def _read(self, token_ids: list[int], start: int, reporter: Reporter) -> torch.Tensor:
        """The state `[1, d]` of the last token; progress with tokens a second."""
        began = self.clock()
        done = 0
        with reporter.bar("reading", len(token_ids) - start, "tokens") as bar:

            def told(tokens: int, bar: Bar = bar) -> None:
                nonlocal done
                done += tokens
                bar.advance(tokens, speed=f"{done / (self.clock() - began):,.0f} tokens/s")

            return read_chunks(
                self.feed, token_ids, self.kept, chunk=self.chunk, keep=1, start=start, told=told
            )

    def _answer(
        self,
        prompt: Prompt,
        state: torch.Tensor,
        read: int,
        started: float,
        how: Answering,
        show: Show,
    ) -> Answer:
        choose = how.sampling.chooser()
        text = AnswerText(self.tokenizer, how.stop_strings, prompt.token_ids)
        tokens, reason, first = [self._next(state, choose)], "length", self.clock()
        while True:
            if tokens[-1] in self.ends:
                tokens.pop()
                reason = "end"
                break
            show(text.add(tokens[-1]))
            if text.stopped:
                reason = "stop"
            if text.stopped or len(tokens) == how.max_new_tokens:
                break
            tokens.append(self._next(self.feed(tokens[-1:], self.kept), choose))
        show(text.rest())
        return Answer(
            question=prompt.question,
            text=text.shown,
            token_ids=tokens,
            finish_reason=reason,
            prompt_tokens=len(prompt.token_ids),
            read_tokens=read,
            seconds_to_first_token=first - started,
            seconds_of_decoding=self.clock() - first,
        )

    def _next(self, state: torch.Tensor, choose: Choose | None) -> int:
        """The token after a state `[1, d]`; `choose` draws it, None takes the most probable one."""
        weight = self.model.lm_head.weight
        if choose is None:
            token = most_probable(state, weight)
        else:
            logits = wide_logits(state, weight)[0]
            token = choose(logits) if bool(logits.isfinite().all()) else -1
        if token < 0:
            raise GiraffeError(
                "the model gives logits that are not finite numbers",
                "generate with --dtype float32; if it stays, the checkpoint is damaged",
            )
        return token
