"""One loaded model under several tables against models that were loaded with each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from giraffe_cli.checkpoint import inspect
from giraffe_cli.corpus.base import BadRecords
from giraffe_cli.corpus.sources import read_source
from giraffe_cli.errors import InvalidInput
from giraffe_cli.evals.samples import Texts
from giraffe_cli.model.loading import load_model
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import make_table
from giraffe_cli.rope.install import check_table, swap_table
from giraffe_cli.tune.evidence import gather_evidence
from giraffe_cli.tune.reading import TableReader
from giraffe_cli.tune.texts import longest_documents


@pytest.fixture
def checkpoint(tiny_llama, tmp_path):
    return inspect(str(tiny_llama), tmp_path)


@pytest.fixture
def evidence(checkpoint, corpus):
    documents = [d for d in read_source(str(corpus), BadRecords()) if len(d.text) > 2000]
    texts = Texts(documents, documents)
    return gather_evidence(
        checkpoint, 128, 512, texts, SilentReporter(), documents=3, needles=False
    )


@pytest.fixture
def reader(checkpoint, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    return TableReader(checkpoint, "float32", cache)


class Bar:
    def advance(self, amount=1, **fields):
        """Nothing to show."""


def tables(checkpoint):
    head = checkpoint.head(512)
    return [make_table(name, {}, head) for name in ("yarn", "none", "linear", "ntk", "yarn")]


def by_transformers(checkpoint, table, example):
    """Mean loss of the targets by the stock forward of a model loaded with `table`."""
    model = load_model(checkpoint.path, dtype=torch.float32, table=table)
    ids = torch.tensor(example.token_ids[None].astype(np.int64))
    with torch.no_grad():
        logits = model(ids).logits[0, -example.num_targets - 1 : -1]
    targets = ids[0, -example.num_targets :]
    return float(torch.nn.functional.cross_entropy(logits, targets))


def test_losses_are_those_of_models_loaded_with_each_table(checkpoint, evidence, reader):
    for table in tables(checkpoint):
        reader.read(table, evidence.all(), Bar())
        for length in (128, 512):
            entries = evidence.entries["nll"][length]
            values = reader.values(table, evidence.tasks["nll"], entries)
            assert len(values) == 3
            for _, example in entries:
                # float32 in another order of sums
                expected = by_transformers(checkpoint, table, example)
                assert values[example.pair].value == pytest.approx(expected, abs=1e-4)


def test_tables_have_outcomes_of_their_own_and_each_is_read_once(checkpoint, evidence, reader):
    yarn, none, *_ = tables(checkpoint)
    entries = evidence.deciding()
    reader.read(yarn, entries, Bar())
    assert reader.missing(yarn, entries) == []
    assert len(reader.missing(none, entries)) == 3
    tokens = reader.read_tokens
    reader.read(yarn, entries, Bar())
    assert reader.read_tokens == tokens == 3 * 512
    assert reader.seconds(yarn, entries) == 0.0
    assert reader.seconds(none, entries) > 0.0


def test_another_reader_finds_them_in_the_cache(checkpoint, evidence, reader):
    table = tables(checkpoint)[0]
    reader.read(table, evidence.deciding(), Bar())
    again = TableReader(checkpoint, "float32", reader.cache)
    assert again.missing(table, evidence.deciding()) == []
    other = TableReader(checkpoint, "bfloat16", reader.cache)
    assert len(other.missing(table, evidence.deciding())) == 3


def test_a_swapped_table_is_the_one_that_was_asked_for(checkpoint):
    model = load_model(checkpoint.path, dtype=torch.bfloat16)
    for table in tables(checkpoint):
        swap_table(model, table)
        check_table(model, table)
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_documents_that_reach_no_target_are_refused(checkpoint, corpus):
    documents = list(read_source(str(corpus), BadRecords()))
    with pytest.raises(InvalidInput, match="none of 3 documents has 8192 tokens"):
        gather_evidence(
            checkpoint, 128, 8192, Texts(documents), SilentReporter(), documents=3, needles=False
        )


def test_the_longest_documents_of_a_corpus(corpus):
    found = longest_documents([str(corpus)], 3)
    whole = sorted((len(d.text) for d in read_source(str(corpus), BadRecords())), reverse=True)
    assert [len(d.text) for d in found] == whole[:3]
    odd = longest_documents([str(corpus)], 30, keep=lambda d: d.id.endswith("2"))
    assert sorted(d.id for d in odd) == ["doc-12", "doc-2", "doc-22"]


class TestLookUps:
    def gather(self, checkpoint, corpus, **wanted):
        documents = [d for d in read_source(str(corpus), BadRecords()) if len(d.text) > 2000]
        reporter = SilentReporter()
        texts = Texts(documents, documents)
        evidence = gather_evidence(checkpoint, 128, texts=texts, reporter=reporter, **wanted)
        return evidence, reporter

    def test_are_read_at_both_ends_where_they_fit(self, checkpoint, corpus):
        evidence, reporter = self.gather(checkpoint, corpus, target_length=1344, documents=2)
        assert {*evidence.entries["nll"]} == {128, 256, 512, 1024, 1344}
        assert {*evidence.entries["needle-nll"]} == {1344}  # 128 tokens hold no eight numbers
        assert reporter.warnings == []

    def test_are_left_out_with_a_warning_where_they_do_not(self, checkpoint, corpus):
        evidence, reporter = self.gather(checkpoint, corpus, target_length=512, documents=2)
        assert {*evidence.entries} == {"nll"}
        assert reporter.warnings[0].startswith("look-ups are left out: task `needle-nll`: length")

    def test_must_fit_where_they_decide(self, checkpoint, corpus):
        with pytest.raises(InvalidInput, match="needle-nll"):
            self.gather(checkpoint, corpus, target_length=512, documents=2, fitness="needle-nll")
