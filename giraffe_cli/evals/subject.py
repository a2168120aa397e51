"""A checkpoint under evaluation: reads prompts in chunks, keeps what the next prompt shares.

Prompts are fed to the model in pieces of `CHUNK` tokens that start at multiples of `CHUNK`, with a
KV cache. So working memory is one chunk's activations plus the keys and values, whatever the
length, and logits exist only for scored tokens. When the next prompt begins with the same whole
chunks, their keys and values stay: bit for bit what feeding them again would give, because the
same pieces are fed at the same places. Sorted prompts share the most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from giraffe_cli.checkpoint import load_model, load_tokenizer, torch_dtype
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.base import Example, Outcome
from giraffe_cli.evals.prompt import share_found
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.loss import token_nll

if TYPE_CHECKING:
    import torch

CHUNK = 512
"""Tokens fed at a time: full speed on a CPU from here on, and small enough to share prefixes."""
LOGIT_CHUNK = 256
"""Scored tokens whose logits exist at one time."""
EVALUATOR = "evaluator"
"""The subject that only chooses what the others are scored on."""


@dataclass(frozen=True)
class Subject:
    """A model that is scored: `base`, the `checkpoint` that is compared with it, the `control`
    that was trained alike within the native window, or the `evaluator` of `longppl`."""

    name: str
    path: Path
    """A Hugging Face directory."""
    digest: str
    """sha256 over config, tokenizer and weights: the identity of every cached outcome."""
    dtype: str
    """Computation type: `float32`, `bfloat16` or `float16`."""
    longest: int | None = None
    """Tokens of context up to which it is scored; None: at every length."""

    def takes(self, example: Example) -> bool:
        """Whether it reads `example`."""
        if self.name == EVALUATOR:
            return example.for_reference
        return self.longest is None or example.length <= self.longest


class OpenSubject:
    """A loaded model that turns examples into outcomes, one at a time."""

    def __init__(self, model: Any, tokenizer: Any, chunk: int = CHUNK) -> None:
        from transformers import DynamicCache

        self.model, self.tokenizer, self.chunk = model, tokenizer, chunk
        self.cache = DynamicCache()
        self.cached_ids: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        """The prompt whose keys and values the cache holds first."""
        self.fed_tokens = 0
        """Tokens that went through the model, to show what sharing saved."""

    def outcome(self, example: Example) -> Outcome:
        """Score the targets of `example` and generate after it, as it asks for.

        Raises:
            GiraffeError: the model gave a NaN or infinite NLL.
        """
        import torch

        with torch.inference_mode():
            hidden = self._read(example.token_ids, example.num_targets + 1)
            nll = self._score_targets(hidden[:-1], example)
            candidate_nll, greedy = self._rank(hidden[-1:], example)
            text = self._generate(hidden[-1:], example)
        if not np.isfinite([*nll, *candidate_nll]).all():
            raise GiraffeError(
                f"{example.key} at {example.length} tokens: the model gives a loss that is not "
                "a finite number",
                "evaluate with --dtype float32; if it stays, the checkpoint is damaged",
            )
        states = hidden[:-1].float().cpu().numpy() if example.compared else None
        return Outcome(nll, text, candidate_nll, greedy, states=states)

    def _read(self, token_ids: npt.NDArray[np.int32], keep: int) -> torch.Tensor:
        """Final hidden states `[keep, d]` of the last `keep` tokens of a prompt."""
        import torch

        start = self._reuse(token_ids, keep)
        first_kept, kept = len(token_ids) - keep, []
        while start < len(token_ids):
            piece = token_ids[start : start + self.chunk]
            hidden = self._feed(piece.tolist())
            if start + len(piece) > first_kept:
                kept.append(hidden[max(0, first_kept - start) :].clone())
            start += len(piece)
        return torch.cat(kept)

    def _reuse(self, token_ids: npt.NDArray[np.int32], keep: int) -> int:
        """Crop the cache to the whole chunks shared with the previous prompt; their tokens."""
        both = min(len(token_ids), len(self.cached_ids))
        differing = np.flatnonzero(token_ids[:both] != self.cached_ids[:both])
        common = int(differing[0]) if len(differing) else both
        shared = min(common, len(token_ids) - keep) // self.chunk * self.chunk
        self.cache.crop(shared - self.cache.get_seq_length())
        self.cached_ids = token_ids
        return shared

    def _feed(self, token_ids: list[int], **placed: torch.Tensor) -> torch.Tensor:
        """Append tokens to the cache; their final hidden states `[len(token_ids), d]`."""
        import torch

        input_ids = torch.tensor([token_ids], device=self.model.device)
        output = self.model.model(input_ids, past_key_values=self.cache, use_cache=True, **placed)
        self.fed_tokens += len(token_ids)
        return output.last_hidden_state[0]  # type: ignore[no-any-return]

    def _score_targets(self, hidden: torch.Tensor, example: Example) -> npt.NDArray[np.float64]:
        """`[num_targets]` nats; `hidden` are the states just before each target."""
        import torch

        if not example.num_targets:
            return np.zeros(0)
        labels = torch.tensor(example.token_ids[-example.num_targets :].astype(np.int64))
        # float32 whatever the model's type: a bfloat16 logit of 20 is off by up to 0.06
        weight = self.model.lm_head.weight.float()
        nll = token_nll(hidden.float(), weight, labels.to(weight.device), LOGIT_CHUNK)
        return nll.cpu().numpy().astype(np.float64)

    def _rank(
        self, hidden: torch.Tensor, example: Example
    ) -> tuple[tuple[float, ...], tuple[bool, ...]]:
        """Nats of each candidate after the prompt whose last state is `hidden` `[1, d]`, and
        whether its every token is the most probable; the cache is left as it was."""
        import torch

        if not example.candidates:
            return (), ()
        states = self._candidate_states(hidden, example.candidates)
        labels = torch.tensor([token for c in example.candidates for token in c])
        logits = self._logits(states)
        labels = labels.to(logits.device)
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        right = logits.argmax(-1) == labels
        sizes = [len(candidate) for candidate in example.candidates]
        return (
            tuple(float(part.double().sum()) for part in torch.split(nll, sizes)),
            tuple(bool(part.all()) for part in torch.split(right, sizes)),
        )

    def _candidate_states(
        self, hidden: torch.Tensor, candidates: Sequence[tuple[int, ...]]
    ) -> torch.Tensor:
        """The state before each token of each candidate, `[tokens, d]`.

        On a CPU all candidates are fed in one row, each attending to the prompt and to itself.
        """
        import torch

        prompt = self.cache.get_seq_length()
        heads = [candidate[:-1] for candidate in candidates]
        fed = [head for head in heads if head]
        if self.model.device.type == "cpu" and fed:
            ends = np.cumsum([0, *map(len, fed)])
            places = [prompt + place for head in fed for place in range(len(head))]
            states = self._feed(
                [token for head in fed for token in head],
                position_ids=torch.tensor([places]),
                cu_seqlens=torch.tensor(ends, dtype=torch.int32),
            )
            self.cache.crop(prompt - self.cache.get_seq_length())
            follow = iter(torch.split(states, [len(head) for head in fed]))
        else:
            follow = iter([self._feed_and_forget(list(head)) for head in fed])
        return torch.cat([p for head in heads for p in (hidden, *([next(follow)] if head else []))])

    def _feed_and_forget(self, token_ids: list[int]) -> torch.Tensor:
        states = self._feed(token_ids)
        self.cache.crop(-len(token_ids))
        return states

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 whatever the model's type, as the scored targets have them."""
        logits: torch.Tensor = hidden.float() @ self.model.lm_head.weight.float().T
        return logits

    def _generate(self, hidden: torch.Tensor, example: Example) -> str:
        """Greedy continuation from the last prompt token's state `[1, d]`, up to EOS."""
        ends = self.model.config.eos_token_id
        stop = set(ends if isinstance(ends, list) else [ends])
        generated: list[int] = []
        text = ""
        while len(generated) < example.max_new_tokens:
            token = int(self.model.lm_head(hidden)[0].argmax())
            if token in stop:
                break
            generated.append(token)
            text = str(self.tokenizer.decode(generated, skip_special_tokens=True))
            if example.stops_when_found and share_found(example.answers, text) == 1:
                break
            if len(generated) < example.max_new_tokens:
                hidden = self._feed([token])
        return text


def open_subject(subject: Subject) -> OpenSubject:
    """Load `subject` onto the GPU when there is one, else the CPU.

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
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return OpenSubject(model, load_tokenizer(subject.path))
