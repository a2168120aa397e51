"""A loaded subject: reads prompts in chunks, keeps what the next prompt shares.

Prompts are fed to the model in chunks of so many tokens that start at multiples of as many, with a
KV cache. So working memory is one chunk's activations plus the keys and values, whatever the
length, and logits exist only for scored tokens. When the next prompt begins with the same whole
chunks, their keys and values stay: bit for bit what feeding them again would give, because the
same pieces are fed at the same places. Short prompts are read several to a row, each for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.answers import Ranking, generated, judged, ranking
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.order import Prompt, shared_tokens
from giraffe_cli.evals.subject import Subject
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.held_table import HeldTable
from giraffe_cli.model.key_values import KeyValues
from giraffe_cli.model.loading import end_tokens, load_model, load_tokenizer, torch_dtype
from giraffe_cli.model.reading import CHUNKS, feed, read_chunks, wide_logits

if TYPE_CHECKING:
    import torch


class ReadPrompt(NamedTuple):
    """A prompt that went through the model."""

    hidden: torch.Tensor
    """Final states `[keep, d]` of its last tokens."""
    kept: KeyValues | None
    """Its keys and values and nothing behind them; None where nothing follows it."""


class OpenSubject:
    """A loaded model that turns examples into outcomes."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        chunk: int = CHUNKS["cpu"],
        *,
        shares_prompts: bool = True,
        shares_candidates: bool = True,
    ) -> None:
        """`shares_prompts` and `shares_candidates` off read every prompt, and every candidate
        behind its prompt, from the first token: to measure what sharing saves."""
        self.model, self.tokenizer, self.chunk = model, tokenizer, chunk
        self.shares_prompts, self.shares_candidates = shares_prompts, shares_candidates
        self.kept, self.table = self.nothing_kept(), HeldTable(model)
        self.cached_ids: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        """The prompt whose keys and values `kept` holds first."""
        self.fed_tokens = 0
        """Tokens that went through the model, to show what sharing saved."""

    def outcome(self, example: Example) -> Outcome:
        """`outcomes` of one example alone."""
        return self.outcomes([Prompt((("", example),))])[0][0]

    def outcomes(self, prompts: Sequence[Prompt]) -> list[list[Outcome]]:
        """Score the targets of each prompt's examples and answer them, as they ask for.

        One prompt is read chunk by chunk after what it shares with the one before; several are
        read in one row.

        Raises:
            GiraffeError: the model gave a NaN or infinite NLL.
        """
        import torch

        with torch.inference_mode():
            read = [self._read(prompts[0])] if len(prompts) == 1 else self._read_row(prompts)
            losses = iter(self._losses(prompts, read))
            return [
                [self._outcome(example, found, next(losses)) for _, example in prompt.entries]
                for prompt, found in zip(prompts, read, strict=True)
            ]

    def _losses(
        self, prompts: Sequence[Prompt], read: Sequence[ReadPrompt]
    ) -> list[npt.NDArray[np.float64]]:
        """`[num_targets]` nats of every example, all in one: the head is read once."""
        import torch

        states, labels, sizes = [], [], []
        for prompt, found in zip(prompts, read, strict=True):
            for _, example in prompt.entries:
                count = example.num_targets
                sizes.append(count)
                states.append(_before_targets(found.hidden, count))
                labels += example.token_ids[len(example.token_ids) - count :].tolist()
        nats, _ = judged(torch.cat(states), self.model.lm_head.weight, labels)
        return np.split(np.asarray(nats, np.float64), np.cumsum(sizes)[:-1])

    def _outcome(self, example: Example, read: ReadPrompt, nll: npt.NDArray[np.float64]) -> Outcome:
        ranked = self._rank(read, example) if example.candidates else Ranking()
        text = self._generate(read, example, ranked.begun) if example.max_new_tokens else ""
        if not np.isfinite([*nll, *ranked.nll]).all():
            raise GiraffeError(
                f"{example.key} at {example.length} tokens: the model gives a loss that is not "
                "a finite number",
                "evaluate with --dtype float32; if it stays, the checkpoint is damaged",
            )
        states = None
        if example.compared:
            states = _before_targets(read.hidden, example.num_targets).float().cpu().numpy()
        return Outcome(nll, text, ranked.nll, ranked.greedy, states=states)

    # ------------------------------------------------------------ reading

    def _read(self, prompt: Prompt) -> ReadPrompt:
        """A prompt after the whole chunks that it shares with the one before."""
        ids, shared = prompt.token_ids, 0
        turned_otherwise = self.table.hold(prompt.reach)
        if self.shares_prompts and not turned_otherwise:
            shared = shared_tokens(self.cached_ids, ids, prompt.keep, self.chunk)
        self.kept.cut(shared)
        self.kept.reserve(len(ids) + prompt.room_after)
        self.cached_ids = ids
        return ReadPrompt(self._read_from(shared, ids, prompt.keep, self.kept), self.kept)

    def _read_from(
        self, start: int, token_ids: npt.NDArray[np.int32], keep: int, kept: KeyValues
    ) -> torch.Tensor:
        """Final states `[keep, d]` of the last tokens; the first `start` are in `kept`."""
        return read_chunks(
            self.feed, token_ids.tolist(), kept, chunk=self.chunk, keep=keep, start=start
        )

    def _read_row(self, prompts: Sequence[Prompt]) -> list[ReadPrompt]:
        """Prompts side by side; each sees itself alone."""
        import torch

        sizes = [len(prompt.token_ids) for prompt in prompts]
        if self.table.hold(max(prompt.reach for prompt in prompts)):
            self.cached_ids = np.zeros(0, np.int32)
        ends = np.cumsum([0, *sizes]).tolist()
        kept = self.nothing_kept() if any(prompt.room_after for prompt in prompts) else None
        hidden = self.feed(
            [token for prompt in prompts for token in prompt.token_ids.tolist()],
            kept,
            position_ids=torch.cat([torch.arange(size) for size in sizes])[None],
            cu_seqlens=torch.tensor(ends, dtype=torch.int32),
        )
        return [
            ReadPrompt(
                hidden[stop - prompt.keep : stop],
                kept.part(start, stop, prompt.room_after) if kept is not None else None,
            )
            for prompt, (start, stop) in zip(prompts, pairwise(ends), strict=True)
        ]

    def feed(
        self, token_ids: list[int], kept: KeyValues | None, **placed: torch.Tensor
    ) -> torch.Tensor:
        """`reading.feed`, counted."""
        self.fed_tokens += len(token_ids)
        return feed(self.model, token_ids, kept, **placed)

    def nothing_kept(self) -> KeyValues:
        """An empty cache of this model's layers."""
        return KeyValues(self.model.config.num_hidden_layers)

    # ------------------------------------------------------------ answering

    def _rank(self, read: ReadPrompt, example: Example) -> Ranking:
        """The example's candidates after a prompt, which is left as it was."""
        states = self._candidate_states(read, example)
        return ranking(states, self.model.lm_head.weight, example)

    def _candidate_states(self, read: ReadPrompt, example: Example) -> torch.Tensor:
        """The state before each token of each candidate, `[tokens, d]`.

        On a CPU all candidates are fed in one row, each attending to the prompt and to itself.
        """
        import torch

        last, heads = read.hidden[-1:], [candidate[:-1] for candidate in example.candidates]
        fed = [head for head in heads if head]
        if not self.shares_candidates:
            follow = iter([self._read_whole(example, head) for head in fed])
        elif self.model.device.type == "cpu" and fed:
            follow = iter(self._feed_side_by_side(fed, read))
        else:
            follow = iter([self._feed_and_forget(list(head), read) for head in fed])
        return torch.cat([p for head in heads for p in (last, *([next(follow)] if head else []))])

    def _feed_side_by_side(
        self, heads: Sequence[tuple[int, ...]], read: ReadPrompt
    ) -> Sequence[torch.Tensor]:
        import torch

        assert read.kept is not None
        prompt, sizes = read.kept.get_seq_length(), [len(head) for head in heads]
        states = self.feed(
            [token for head in heads for token in head],
            read.kept,
            position_ids=torch.cat([prompt + torch.arange(size) for size in sizes])[None],
            cu_seqlens=torch.tensor(np.cumsum([0, *sizes]), dtype=torch.int32),
        )
        read.kept.cut(prompt)
        return torch.split(states, sizes)

    def _feed_and_forget(self, token_ids: list[int], read: ReadPrompt) -> torch.Tensor:
        assert read.kept is not None
        prompt = read.kept.get_seq_length()
        states = self.feed(token_ids, read.kept)
        read.kept.cut(prompt)
        return states

    def _read_whole(self, example: Example, head: tuple[int, ...]) -> torch.Tensor:
        ids = np.concatenate([example.token_ids, np.asarray(head, np.int32)])
        return self._read_from(0, ids, len(head), self.nothing_kept())

    def _generate(self, read: ReadPrompt, example: Example, begun: tuple[int, ...]) -> str:
        """Greedy continuation, up to EOS; the prompt is left as it was."""
        kept = read.kept
        assert kept is not None
        prompt, last = kept.get_seq_length(), read.hidden[-1:]

        def follow(tokens: list[int]) -> int:
            state = self.feed(tokens, kept)[-1:] if tokens else last
            return int(wide_logits(state, self.model.lm_head.weight)[0].argmax())

        def decode(tokens: list[int]) -> str:
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

        text = generated(example, begun, follow, end_tokens(self.model), decode)
        kept.cut(prompt)
        return text


def _before_targets(hidden: torch.Tensor, count: int) -> torch.Tensor:
    """The states just before each of the last `count` tokens."""
    return hidden[len(hidden) - 1 - count : len(hidden) - 1]


def open_subject(subject: Subject, device: torch.device | None = None) -> OpenSubject:
    """Load `subject` onto `device`; by default the GPU when there is one, else the CPU.

    Raises:
        InvalidInput: no such directory, or it is no checkpoint.
    """
    import torch

    if not subject.path.is_dir():
        raise InvalidInput(f"{subject.path} is not a directory", "name a checkpoint directory")
    attention = register_attention()
    model = load_model(
        subject.path, dtype=torch_dtype(subject.dtype), attn_implementation=attention
    )
    model.to(device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return OpenSubject(model, load_tokenizer(subject.path), CHUNKS[model.device.type])
