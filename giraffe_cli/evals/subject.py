"""A checkpoint under evaluation: its name, its place, the lengths at which it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from giraffe_cli.evals.base import Example
from giraffe_cli.rope.readings import read_as_transformers_5, switches
from giraffe_cli.rundir import digest_file, digest_value, read_json

EVALUATOR = "evaluator"
"""The subject that only chooses what the others are scored on."""
TEXT_FILES = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "generation_config.json"),
)


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

    @property
    def text_digest(self) -> str:
        """sha256 over the files that, beside `tokenizer.json`, decide how tokens become text, how
        a chat is written and where an answer ends."""
        found = [self.path / name for name in TEXT_FILES]
        return digest_value({p.name: digest_file(p) for p in found if p.is_file()})

    @property
    def table_follows_length(self) -> bool:
        """Whether its rotary table changes with the length of a text; earlier versions read such
        texts with several."""
        file = self.path / "config.json"
        return file.is_file() and switches(read_as_transformers_5(read_json(file)))

    def takes(self, example: Example) -> bool:
        """Whether it reads `example`."""
        if self.name == EVALUATOR:
            return example.for_reference
        return self.longest is None or example.length <= self.longest


def reference_subject(subjects: Sequence[Subject]) -> Subject:
    """Whose reading chooses what others are scored on: evaluator, else base, else checkpoint."""
    by_name = {subject.name: subject for subject in subjects}
    return next(by_name[name] for name in (EVALUATOR, "base", "checkpoint") if name in by_name)
