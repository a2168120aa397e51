"""Whether the models of an evaluation cut the same text into the same tokens.

All of them read the token ids of the first one's tokenizer, so that a loss is of the same targets.
Of a model whose own tokenizer cuts otherwise, as a conversion that lost merges leaves one, the
scores would be those of a tokenizer that its users do not have.

    one vocabulary, the same rules       nothing to say
    one vocabulary, other rules          the text itself is cut by both
    another vocabulary                   refused
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Tokenizer

from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.haystack import python_topics
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.units import visible

RULES = ("model", "normalizer", "pre_tokenizer", "added_tokens")
"""What of a tokenizer.json decides how a text is cut."""
MOST_APART = 0.01
"""Share of tokens that may be others; more are another tokenizer."""
MOST_CUT = 200_000
"""Characters of a text that are cut twice."""


def cut_apart(
    subjects: Sequence[Subject], tokenizers: Sequence[Any], texts: Sequence[str]
) -> list[str]:
    """A warning for each subject whose tokenizer cuts a few tokens of `texts` otherwise than the
    first one's; without texts, those of the help topics of the running Python.

    Raises:
        InvalidInput: a tokenizer has another vocabulary, or cuts more than a few otherwise.
    """
    first, *others = tokenizers
    warnings = []
    for subject, other in zip(subjects[1:], others, strict=True):
        if other.get_vocab() != first.get_vocab():
            raise _refused(subjects[0], subject, "have different tokenizers")
        if _rules(other) == _rules(first):
            continue
        share, example = _apart(first, other, texts or python_topics())
        told = f"{share:.2%} of the tokens, such as of {example}"
        if share > MOST_APART:
            raise _refused(subjects[0], subject, f"have one vocabulary and cut text apart: {told}")
        if share:
            warnings.append(
                f"the tokenizer of {subject.name} cuts {told} otherwise than that of "
                f"{subjects[0].name}, whose tokens all models read"
            )
    return warnings


def _refused(first: Subject, other: Subject, what: str) -> InvalidInput:
    return InvalidInput(
        f"{first.path} and {other.path} {what}",
        "name an evaluator of the same model family"
        if other.name == EVALUATOR
        else "compare a checkpoint with the base it was made from, or mend its tokenizer.json",
    )


def _rules(tokenizer: Any) -> dict[str, Any]:
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    return {name: values.get(name) for name in RULES}


def _apart(first: Any, other: Any, texts: Sequence[str]) -> tuple[float, str]:
    """The share of the first one's tokens that the other's lack, and the first such place."""
    total = missing = 0
    example, cutters = "", [_cutter(tokenizer) for tokenizer in (first, other)]
    for text in texts:
        ours, theirs = (list(_spans(cutter, text[:MOST_CUT])) for cutter in cutters)
        apart = set(ours) - set(theirs)
        total, missing = total + len(ours), missing + len(apart)
        if apart and not example:
            _, start, stop = min(apart, key=lambda token: token[1:])
            example = f"`{visible(text[max(0, start - 10) : stop + 10]).strip()}`"
    return missing / max(1, total), example


def _cutter(tokenizer: Any) -> Tokenizer:
    """A copy without what follows the cutting: Llama 3's post-processor moves the beginning of a
    token behind its blank, and that of a GGUF does not."""
    copy = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    copy.post_processor = None
    return copy


def _spans(cutter: Tokenizer, text: str) -> Iterator[tuple[int, int, int]]:
    """Each token with the characters that it stands for."""
    encoded = cutter.encode(text, add_special_tokens=False)
    for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
        yield token, start, stop
