"""Which documents an evaluation scores: each text once, and what is longest in tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giraffe_cli.corpus.base import Document, longest_first

ENGLISH, CHINESE = "the same words " * 8, "同樣的字" * 14


def test_each_text_once_and_bytes_before_characters():
    """120 characters of English are about 30 tokens, 56 of Chinese about as many or more."""
    documents = [
        Document("b", ENGLISH, "one"),
        Document("c", CHINESE, "two"),
        Document("a", ENGLISH, "one"),
        Document("d", ENGLISH, "another"),
        Document("e", "short", "one"),
    ]
    found = longest_first(documents)
    assert [(d.source, d.id) for d in found] == [("two", "c"), ("another", "d"), ("one", "e")]
    assert longest_first(reversed(documents)) == found, "whatever the order they were read in"
    assert longest_first([]) == []


@pytest.mark.parametrize("copies", [0, 3])
def test_a_copy_is_no_other_sample(giraffe, tiny_llama, tmp_path, copies):
    """Two texts under five ids were five documents, with an interval of five."""
    texts = [" ".join(f"{word}{n}" for n in range(300)) for word in ("one", "two")]
    # white space is no other text either
    lines = [{"id": str(n), "text": texts[n % 2] + " " * n} for n in range(2 + copies)]
    data = tmp_path / "docs.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = giraffe("eval", tiny_llama, "--data", data, "--lengths", "128", "--tasks", "nll",
                   "--set", "nll.targets=16", "--out", tmp_path / "scores", "--json")  # fmt: skip
    assert done.code == 0, done.stderr
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results["models"]["checkpoint"]["tasks"]["nll"]["128"]["clusters"] == 2
    warning = f"left out: {copies} documents with the text of another"
    assert (warning in results["warnings"]) == (copies > 0)
    assert (warning in done.stderr) == (copies > 0)


@given(
    st.lists(st.tuples(st.text("aé漢 ", max_size=3), st.sampled_from("xyz")), max_size=40),
    st.integers(1, 5),
)
def test_a_few_are_the_first_of_all(drawn, most):
    """Whatever is dropped on the way comes again under a smaller id, or was too short."""
    documents = [Document(f"d{n % 7}", text, source) for n, (text, source) in enumerate(drawn)]
    assert longest_first(iter(documents), most) == longest_first(documents)[:most]
