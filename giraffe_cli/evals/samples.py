"""The samples of an evaluation, made once for all models: documents, tasks, lengths.

No model is opened here; what cannot be evaluated is refused before anything is loaded.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from typing import Any

import numpy as np

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.corpus.base import Document, longest_first
from giraffe_cli.corpus.duplicates import text_hash
from giraffe_cli.errors import GiraffeError, InvalidInput, Problems
from giraffe_cli.evals.base import (
    AbstractTask,
    Example,
    Material,
    TokenDocument,
    make_task,
)
from giraffe_cli.evals.chosen import check_asked, needs_of, runnable
from giraffe_cli.evals.haystack import python_documentation, too_short
from giraffe_cli.evals.other_text import documentation
from giraffe_cli.evals.same_tokens import cut_apart
from giraffe_cli.evals.subject import EVALUATOR, Subject
from giraffe_cli.model.chat import WITHOUT, in_chat
from giraffe_cli.model.loading import load_tokenizer
from giraffe_cli.progress import Reporter
from giraffe_cli.units import counted, format_length


@dataclass(frozen=True)
class Batch:
    """The examples of one task, at every length it can fill, in the order they are reported."""

    name: str
    task: AbstractTask
    examples: list[Example]


@dataclass(frozen=True)
class Texts:
    """What an evaluation reads its samples from."""

    documents: Sequence[Document] = ()
    """Held-out text, scored by its loss."""
    haystack: Sequence[Document] = ()
    """Text that needles are hidden in; empty: the documentation inside the running Python."""
    other: Sequence[Document] = ()
    """Text of another domain than the documents; empty: the help topics of the running Python."""
    reference_length: int = 0
    """Tokens the evaluator of `longppl` reads well; 0: the native window."""


def default_lengths(native_length: int, longest: int) -> list[int]:
    """The native window, every fourfold of it, and `longest`: 1k, 4k, 16k, 20k for 1k and 20k."""
    lengths = [native_length]
    while lengths[-1] * 4 < longest:
        lengths.append(lengths[-1] * 4)
    return sorted({*lengths, max(native_length, longest)})


def gather_material(
    subjects: Sequence[Subject],
    texts: Texts,
    config: EvalConfig,
    lengths: Sequence[int],
    native_length: int,
) -> Material:
    """What tasks build from: the shared tokenizer, and the longest documents, tokenised.

    Raises:
        InvalidInput: the subjects' tokenizers differ, so that samples could not be the same, or
            the chat template that was asked for does not exist.
    """
    tokenizers = [load_tokenizer(subject.path) for subject in subjects]
    read = longest_first(texts.documents)[: config.documents]
    cut_otherwise = cut_apart(subjects, tokenizers, [document.text for document in read])
    tokenizer = tokenizers[0]
    fast = tokenizer.backend_tokenizer  # without transformers' warning about long texts

    def encode(text: str) -> list[int]:
        return list(fast.encode(text, add_special_tokens=False).ids)

    material = Material(
        encode=encode,
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        bos_token_ids=_leading_special_tokens(fast),
        documents=_tokenised(texts.documents, config.documents, encode),
        haystack=[d.text for d in texts.haystack] if texts.haystack else (),
        native_length=native_length,
        lengths=tuple(lengths),
        reference_length=texts.reference_length or native_length,
        other_text=_tokenised(texts.other, config.documents, encode),
        copies=len(texts.documents) - len({text_hash(d.text) for d in texts.documents}),
        cut_apart=tuple(cut_otherwise),
        begins_apart=_begins_apart(subjects, [t.backend_tokenizer for t in tokenizers]),
        files=config.files,
        chat=in_chat(chat_tokenizer(subjects)) if config.chat else None,
    )
    return with_defaults(config.tasks, material, config.documents)


def _tokenised(
    documents: Sequence[Document], most: int, encode: Callable[[str], list[int]]
) -> list[TokenDocument]:
    """The `most` longest, under ids of their own; of one text once, however often it lies there:
    a copy is not another sample."""
    longest = longest_first(documents)[:most]
    return [
        TokenDocument(name, np.asarray(encode(document.text), np.int32))
        for name, document in zip(_own_ids(longest), longest, strict=True)
    ]


def _own_ids(documents: Sequence[Document]) -> list[str]:
    """`id` where no other document has it, else `source:id`, else `source:id#2` and so on: samples
    are known by them, so that of two alike one would get the other's loss."""
    repeated = Counter(document.id for document in documents)
    names, taken = list[str](), {name for name in repeated if repeated[name] == 1}
    for document in documents:
        name = document.id
        if repeated[name] > 1:
            plain = f"{document.source}:{document.id}"
            numbered = (f"{plain}#{place}" for place in count(2))
            name = next(n for n in chain([plain], numbered) if n not in taken)
        taken.add(name)
        names.append(name)
    return names


def chat_tokenizer(subjects: Sequence[Subject]) -> Any:
    """The tokenizer of the first scored model that has a chat template, which all are asked
    through: the base of a model for chat often has none.

    Raises:
        InvalidInput: none has one.
    """
    scored = (subject for subject in subjects if subject.name != EVALUATOR)
    for tokenizer in (load_tokenizer(subject.path) for subject in scored):
        if tokenizer.chat_template:
            return tokenizer
    raise InvalidInput(
        "--chat: no tokenizer of the evaluated models has a chat template",
        WITHOUT,
    )


def _leading_special_tokens(fast: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a text, without what it may put after it."""
    encoded = fast.encode("a")
    special = zip(encoded.ids, encoded.special_tokens_mask, strict=True)
    return tuple(token for token, _ in takewhile(lambda entry: entry[1] == 1, special))


def _begins_apart(subjects: Sequence[Subject], fast: Sequence[Any]) -> str:
    """Which subjects' texts would begin otherwise than the first one's, such as without BOS."""
    first = _leading_special_tokens(fast[0])
    apart = [
        subject.name
        for subject, tokenizer in zip(subjects, fast, strict=True)
        if _leading_special_tokens(tokenizer) != first
    ]
    return " and ".join(apart)


def prepare(
    config: EvalConfig, lengths: list[int], seed: int, material: Material, reporter: Reporter
) -> tuple[list[Batch], list[str]]:
    """The examples of every task, and a warning for each length a task cannot fill.

    Raises:
        InvalidInput: tasks fill no length at all, all of them told at once; or one is unknown, or
            so is a knob.
        GiraffeError: two samples of a task and length have one key.
    """
    names, warnings = runnable(config)
    if material.copies:
        warnings.append(
            f"left out: {counted(material.copies, 'document')} with the text of another"
        )
    warnings += material.cut_apart
    if material.begins_apart:
        warnings.append(
            f"the tokenizer of {material.begins_apart} begins a text with other special tokens: "
            "every model reads the same, which begins as the first one's"
        )
    hides = "haystack" in needs_of(names)
    if hides and (repeated := too_short(material.haystack, material.encode, max(lengths))):
        warnings.append(repeated)
    for warning in warnings:
        reporter.warn(warning)
    batches, refused = list[Batch](), Problems()
    for name in names:
        task = make_task(name, config.knobs.get(name, {}))
        examples, problems = _examples(task, lengths, seed, material)
        if not examples:
            refused.found.append(problems[0])
            continue
        for problem in problems:
            warnings.append(f"left out: {problem.message}")
            reporter.warn(warnings[-1])
        _check_keys(name, examples)
        batches.append(Batch(name, task, examples))
    refused.settle()
    check_asked(config, [example for batch in batches for example in batch.examples])
    return batches, warnings


def _check_keys(task: str, examples: Sequence[Example]) -> None:
    """Outcomes are known by length and key.

    Raises:
        GiraffeError: two samples have both in common.
    """
    found = Counter((example.length, example.key) for example in examples)
    (length, key), number = found.most_common(1)[0]
    if number > 1:
        raise GiraffeError(
            f"task `{task}` makes {number} samples `{key}` at {format_length(length)}",
            "this is a fault of the task; please report it",
        )


def with_defaults(names: Sequence[str], material: Material, most: int) -> Material:
    """`material` with what Python holds in the place of texts that tasks need and nobody gave."""
    needed = needs_of(names)
    if "haystack" in needed and not material.haystack:
        material = dataclasses.replace(material, haystack=python_documentation())
    if "other_text" in needed and not material.other_text:
        within = [n for n in material.lengths if n <= material.native_length]
        tokens = max(within, default=material.native_length)
        other = documentation(material.encode, tokens, most)
        material = dataclasses.replace(material, other_text=other)
    return material


def _examples(
    task: AbstractTask, lengths: list[int], seed: int, material: Material
) -> tuple[list[Example], list[InvalidInput]]:
    """Examples of every length that can be filled, and why the others cannot."""
    examples: list[Example] = []
    problems: list[InvalidInput] = []
    for length in lengths:
        try:
            examples += task.examples(length, seed, material)
        except InvalidInput as problem:
            problems.append(problem)
    return examples, problems
