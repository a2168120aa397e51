"""No needle was seen in training: the fixed words of every retrieval task, searched in the default
corpus of the running Python.

What is fixed is read off the samples: of the words around each answer, and of the first and last
words of each prompt, those that all samples have at the same distance. So a new task is covered
without being named here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from eval_stubs import byte_material, visible

from giraffe_cli.config.extend import ExtendConfig
from giraffe_cli.corpus.base import BadRecords
from giraffe_cli.corpus.sources import read_source
from giraffe_cli.evals.base import make_task, tasks
from giraffe_cli.evals.measures import RETRIEVAL, RETRIEVAL_OF_SEVERAL

RETRIEVING = sorted(
    n for n, kind in tasks().items() if kind.measures in (RETRIEVAL, RETRIEVAL_OF_SEVERAL)
)
AROUND = 12
"""Words on either side of an answer."""
ASKED = 40
"""Words at either end of a prompt: the task; question and answer prefix."""
SHORTEST, LONGEST = 4, 7
"""Words of a phrase that is searched for: longer runs in pieces, shorter ones not at all. Of six
words one is plain English, "at the end of the line"."""


def words(text: str) -> list[str]:
    """Words as they are compared; what holds a digit is drawn, and stands as `*`."""
    found = re.findall(r"[a-z0-9_]+(?:-[a-z0-9_]+)*", text.lower())
    return ["*" if re.search(r"\d", word) else word for word in found]


def around(answer: str, text: str) -> Iterator[list[str]]:
    """The words on either side of each place of the answer, which becomes `*`."""
    parts = text.split(answer)
    for before, after in zip(parts, parts[1:], strict=False):
        head, tail = words(before)[-AROUND:], words(after)[:AROUND]
        missing = [""] * (AROUND - len(head)), [""] * (AROUND - len(tail))
        yield [*missing[0], *head, "*", *tail, *missing[1]]


def fixed(samples: list[list[str]]) -> list[str]:
    """Word by word what all samples agree on; `*` where they do not."""
    return [one[0] if len({*one}) == 1 else "*" for one in zip(*samples, strict=True)]


def phrases(template: list[str]) -> Iterator[str]:
    """Runs of fixed words, in pieces of `LONGEST`."""
    for run in " ".join(template).split("*"):
        found = run.split()
        if len(found) >= SHORTEST:
            size = min(LONGEST, len(found))
            yield from (" ".join(found[i : i + size]) for i in range(len(found) - size + 1))


def templates(name: str) -> set[str]:
    """The phrases by which a model could know the task's needles, question or prefix."""
    material = byte_material()
    known = {knob: 8 for knob in ("samples", "trials") if knob in vars(make_task(name, {}))}
    examples = make_task(name, known).examples(8192, 0, material)
    asked = [e for e in examples if not e.details.get("control")]
    texts = [visible(example, material) for example in asked]
    ends = [[words(text)[part] for text in texts] for part in (slice(ASKED), slice(-ASKED, None))]
    found = {phrase for samples in ends for phrase in phrases(fixed(samples))}
    for place in range(2):  # passkeys stand twice in their line
        needles = [
            [*around(answer, text)]
            for example, text in zip(asked, texts, strict=True)
            for answer in example.answers
        ]
        if all(len(needle) > place for needle in needles):
            found |= {*phrases(fixed([needle[place] for needle in needles]))}
    return found


def occurring(searched: set[str], text: str) -> set[str]:
    """Those of the phrases that stand in the text."""
    joined = f" {' '.join(words(text))} "
    return {phrase for phrase in searched if f" {phrase} " in joined}


@pytest.fixture(scope="module")
def default_corpus():
    sources = ExtendConfig(target_length=1).data
    return [found.text for source in sources for found in read_source(source, BadRecords())]


@pytest.fixture(scope="module")
def searched():
    return {name: templates(name) for name in RETRIEVING}


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("passkey", "is the pass key"),
        ("passkey", "what is the pass key the pass"),
        ("niah", "one of the special magic"),
        ("niah", "what is the special magic"),
        ("niah-multikey-3", "the special magic uuids for"),
        ("niah-multivalue", "what are all the special magic numbers"),
        ("lines", "now the record is over tell me"),
        ("lines", "is the register_content in line"),
        ("kv", "extract the value corresponding to the specified"),
        ("vt", "find all variables that are assigned the"),
    ],
)
def test_templates_are_read_off_the_samples(searched, name, phrase):
    assert [found for found in searched[name] if phrase in found]


def test_every_retrieval_task_has_some(searched):
    assert {name: len(found) for name, found in searched.items() if len(found) < 4} == {}


def test_none_occurs_in_the_default_training_text(searched, default_corpus):
    everything = {phrase for found in searched.values() for phrase in found}
    assert len(default_corpus) > 100
    assert {hit for text in default_corpus for hit in occurring(everything, text)} == set()


def test_one_that_did_would_be_found(searched):
    for name, found in searched.items():
        text = "def f():\n    '''Once.'''  # " + min(found).replace(" ", ",\n# ")
        assert occurring(found, text), name
