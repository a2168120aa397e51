"""The runner against stock transformers, against fresh caches, and against being killed."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import build_tiny_llama, prose

from giraffe_cli.checkpoint import inspect, load_model, load_tokenizer
from giraffe_cli.config import EvalConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.base import Example
from giraffe_cli.evals.runner import evaluate
from giraffe_cli.evals.samples import default_lengths, gather_material
from giraffe_cli.evals.subject import OpenSubject, Subject
from giraffe_cli.evals.tasks.nll import Nll
from giraffe_cli.evals.tasks.passkey import Passkey
from giraffe_cli.model.attention import register_attention
from giraffe_cli.progress import SilentReporter

DOCUMENTS = [Document(f"doc-{i}", prose(i, 60), "prose") for i in range(8)]
KNOBS = {"nll": {"anchors": 1, "targets": 16}, "passkey": {"depths": 2, "trials": 1}}


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory):
    """The same tokenizer, other weights, and no end of text, so that generation runs on."""
    folder = tmp_path_factory.mktemp("other-llama")
    build_tiny_llama(folder, eos_token_id=None, tie_word_embeddings=False)
    model = load_model(folder, dtype=torch.float32)
    torch.manual_seed(1)
    for matrix in (p for p in model.parameters() if p.dim() == 2):
        torch.nn.init.normal_(matrix, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stock(other_llama):
    return load_model(other_llama, dtype=torch.float32)


def opened(folder, chunk=512):
    model = load_model(folder, dtype=torch.float32, attn_implementation=register_attention())
    return OpenSubject(model, load_tokenizer(folder), chunk)


def subject(name, folder):
    return Subject(name, folder, inspect(str(folder), folder).digest, "float32")


def run(subjects, tmp_path, config=None, cache="cache", lengths=(128, 384), documents=DOCUMENTS):
    reporter = SilentReporter()
    results = evaluate(
        subjects,
        config or EvalConfig(knobs=KNOBS),
        lengths=list(lengths),
        native_length=128,
        seed=0,
        documents=documents,
        out=tmp_path / "out",
        cache=tmp_path / cache,
        reporter=reporter,
    )
    return results, reporter


@pytest.fixture(scope="module")
def examples(other_llama):
    """Prompts of both tasks in the order the runner takes them."""
    material = gather_material([subject("base", other_llama)], DOCUMENTS, 4)
    keyed = Passkey(depths=4, trials=2).examples(512, 0, material)
    found = [dataclasses.replace(example, num_targets=4) for example in keyed]
    found += Nll(targets=16).examples(384, 0, material)
    return sorted(found, key=lambda e: e.token_ids.tolist())


@pytest.fixture(scope="module")
def both(tiny_llama, other_llama, tmp_path_factory):
    """Two models evaluated: results, reporter, folder."""
    folder = tmp_path_factory.mktemp("both")
    subjects = [subject("base", tiny_llama), subject("checkpoint", other_llama)]
    return *run(subjects, folder), folder


class TestOutcome:
    """One example, one model."""

    @pytest.mark.parametrize("chunk", [7, 64, 512])
    def test_target_losses_are_those_of_one_stock_pass(self, other_llama, stock, chunk):
        ids = np.arange(300, dtype=np.int32) * 37 % 384
        found = opened(other_llama, chunk).outcome(Example("k", "c", 300, ids, num_targets=50))
        with torch.inference_mode():
            logits = stock(torch.tensor(ids[None].astype(np.int64))).logits[0, -51:-1]
        labels = torch.tensor(ids[-50:].astype(np.int64))
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        assert found.target_nll.shape == (50,)
        # float32 sums in another order; losses are about 10 nats
        assert found.target_nll == pytest.approx(expected.numpy(), abs=1e-4)

    @pytest.mark.parametrize("chunk", [7, 512])
    def test_generation_is_stock_greedy_generation(self, other_llama, stock, chunk):
        ids = np.arange(110, dtype=np.int32) * 11 % 384
        tested = opened(other_llama, chunk)
        found = tested.outcome(Example("k", "c", 120, ids, max_new_tokens=10))
        prompt = torch.tensor(ids[None].astype(np.int64))
        settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 1}
        expected = stock.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        assert found.text == tested.tokenizer.decode(expected[0, 110:], skip_special_tokens=True)
        assert found.target_nll.shape == (0,)

    def test_generation_stops_at_the_end_of_text(self, other_llama):
        ids = np.arange(60, dtype=np.int32)
        tested = opened(other_llama)
        example = Example("k", "c", 80, ids, max_new_tokens=6)
        whole = tested.outcome(example).text
        first = tested.model.lm_head(tested._read(ids, 1))[0].argmax()
        tested.model.config.eos_token_id = [1, int(first)]
        assert len(whole) > 0
        assert tested.outcome(example).text == ""

    def test_a_loss_that_is_no_number_is_an_error(self, tiny_llama):
        broken = opened(tiny_llama)
        torch.nn.init.constant_(broken.model.model.norm.weight, float("nan"))
        example = Example("doc@1", "c", 9, np.arange(9, dtype=np.int32), num_targets=2)
        with pytest.raises(GiraffeError, match="doc@1 at 9 tokens: .* not a finite number"):
            broken.outcome(example)


class TestPrefixSharing:
    """What the cache keeps of the last prompt changes cost, never a number."""

    def test_outcomes_are_bit_equal_to_those_of_fresh_caches(self, other_llama, examples):
        sharing = opened(other_llama, 32)
        shared = [sharing.outcome(example) for example in examples]
        for example, found in zip(examples, shared, strict=True):
            alone = opened(other_llama, 32).outcome(example)
            assert found.text == alone.text
            assert np.array_equal(found.target_nll, alone.target_nll)
        assert len({outcome.target_nll.tobytes() for outcome in shared}) == len(shared)
        assert len({outcome.text for outcome in shared}) > 2

    def test_it_saves_tokens(self, other_llama, examples):
        sharing = opened(other_llama, 32)
        for example in examples:
            sharing.outcome(example)
        asked = sum(len(e.token_ids) + max(0, e.max_new_tokens - 1) for e in examples)
        assert sharing.fed_tokens < 0.8 * asked

    def test_a_repeated_prompt_is_scored_from_its_last_chunk(self, other_llama, examples):
        twice = opened(other_llama, 32)
        first, before = twice.outcome(examples[0]), twice.fed_tokens
        second = twice.outcome(examples[0])
        assert second.text == first.text
        assert twice.fed_tokens - before <= 32 + 12

    def test_a_prompt_that_is_a_prefix_of_the_last_one(self, other_llama):
        ids = np.arange(200, dtype=np.int32)
        sharing = opened(other_llama, 32)
        sharing.outcome(Example("long", "c", 200, ids, num_targets=8))
        short = Example("short", "c", 96, ids[:96], num_targets=40)
        alone = opened(other_llama, 32).outcome(short)
        assert np.array_equal(sharing.outcome(short).target_nll, alone.target_nll)


class TestResults:
    def test_what_the_file_promises(self, both, tiny_llama):
        results, _, folder = both
        assert json.loads((folder / "out" / "results.json").read_text()) == results
        assert results["schema_version"] == 1
        assert results["seed"] == 0
        base = results["models"]["base"]
        assert base["sha256"] == subject("base", tiny_llama).digest
        assert base["rope"]["rope_parameters"]["rope_theta"] == 10000.0
        assert base["dtype"] == "float32"
        assert set(base["effective_length"]) == {"nll", "passkey"}
        assert [*base["tasks"]["nll"]] == ["128", "384"]
        assert set(base["tasks"]["nll"]["128"]) == {"mean", "ci_low", "ci_high", "n"}
        assert base["tasks"]["nll"]["128"]["n"] == 8
        assert set(base["passkey_by_depth"]["384"]) == {"0.00", "1.00"}
        assert base["controls"]["passkey"]["384"]["n"] == 1

    def test_differences_are_those_of_the_means(self, both):
        results, _, _ = both
        base, checkpoint = (results["models"][n]["tasks"]["nll"] for n in ("base", "checkpoint"))
        paired = results["paired"]["nll"]
        for length in ("128", "384"):
            found = paired["checkpoint_minus_base"][length]["mean"]
            assert found == pytest.approx(checkpoint[length]["mean"] - base[length]["mean"])
        found = paired["length_minus_native"]["base"]["384"]["mean"]
        assert found == pytest.approx(base["384"]["mean"] - base["128"]["mean"])
        assert results["short_context"]["delta_nll"] == paired["checkpoint_minus_base"]["128"]

    def test_a_sample_a_line(self, both):
        _, _, folder = both
        lines = [json.loads(x) for x in (folder / "out" / "samples.jsonl").read_text().splitlines()]
        assert len(lines) == 2 * (2 * 8 + 3)  # subjects * (lengths * documents + 2 depths, control)
        assert lines[0]["subject"] == "base"
        assert lines[0]["mean_nll"] == lines[0]["score"]
        assert lines[18]["details"] == {"control": True}

    def test_a_length_the_template_does_not_fit_is_left_out_by_name(self, both):
        results, reporter, _ = both
        assert [*results["models"]["base"]["tasks"]["passkey"]] == ["384"]
        (warning,) = results["warnings"]
        assert warning.startswith("left out: task `passkey`: length 128 is too short")
        assert reporter.warnings == [warning]

    def test_the_cost_is_said_before_the_start(self, both):
        _, reporter, folder = both
        lines = [json.loads(x) for x in (folder / "out" / "samples.jsonl").read_text().splitlines()]
        tokens = sum(line["prompt_tokens"] for line in lines) // 2
        assert reporter.lines[0] == (
            f"evaluation: 19 samples of nll, passkey at 128, 384, {tokens:,} prompt tokens "
            "for each of 2 models"
        )

    def test_the_same_seed_gives_the_same_bytes(self, both, tiny_llama, other_llama, tmp_path):
        results, _, folder = both
        again, _ = run([subject("base", tiny_llama), subject("checkpoint", other_llama)], tmp_path)
        assert {**again, "seconds": 0} == {**results, "seconds": 0}
        first, second = (p / "out" / "samples.jsonl" for p in (folder, tmp_path))
        assert first.read_bytes() == second.read_bytes()

    def test_few_documents_are_warned_of(self, tiny_llama, tmp_path):
        config = EvalConfig(tasks=["nll"], knobs={"nll": KNOBS["nll"]}, documents=3)
        results, _ = run([subject("checkpoint", tiny_llama)], tmp_path, config)
        assert results["warnings"] == [
            "nll: 3 documents; intervals from fewer than 8 are too narrow to rely on"
        ]
        assert results["paired"]["nll"]["checkpoint_minus_base"] == {}
        assert results["short_context"] == {}


class TestResuming:
    CONFIG = EvalConfig(tasks=["nll"], knobs={"nll": KNOBS["nll"]})

    def test_finished_samples_are_not_run_again(self, tiny_llama, tmp_path):
        folder = shutil.copytree(tiny_llama, tmp_path / "model")
        tested = subject("checkpoint", folder)
        first, _ = run([tested], tmp_path, self.CONFIG)
        (folder / "model.safetensors").unlink()  # opening the model again would fail
        second, _ = run([tested], tmp_path, self.CONFIG)
        assert {**second, "seconds": 0} == {**first, "seconds": 0}

    def test_a_line_cut_short_is_run_again_and_the_rest_kept(self, tiny_llama, tmp_path):
        tested = subject("checkpoint", tiny_llama)
        first, _ = run([tested], tmp_path, self.CONFIG)
        (file,) = (tmp_path / "cache").iterdir()
        whole = file.read_bytes()
        file.write_bytes(whole[:-30])
        second, _ = run([tested], tmp_path, self.CONFIG)
        assert {**second, "seconds": 0} == {**first, "seconds": 0}
        kept, half, again, end = file.read_bytes().rsplit(b"\n", 3)
        assert whole.startswith(kept + b"\n" + half)
        assert [json.loads(again)["key"], end] == [json.loads(whole.splitlines()[-1])["key"], b""]

    def test_an_added_length_costs_only_itself(self, tiny_llama, tmp_path):
        tested = subject("checkpoint", tiny_llama)
        knobs = {"nll": {**KNOBS["nll"], "longest": 384}}
        config = EvalConfig(tasks=["nll"], knobs=knobs)
        run([tested], tmp_path, config, lengths=[128])
        (file,) = (tmp_path / "cache").iterdir()
        before = file.read_bytes()
        run([tested], tmp_path, config, lengths=[128, 384])
        after = file.read_bytes()
        assert after.startswith(before)
        assert after.count(b"\n") == 2 * before.count(b"\n") == 16

    def test_other_weights_or_types_share_nothing(self, tiny_llama, other_llama, tmp_path):
        run([subject("checkpoint", tiny_llama)], tmp_path, self.CONFIG)
        run([subject("checkpoint", other_llama)], tmp_path, self.CONFIG)
        half = Subject("checkpoint", tiny_llama, subject("x", tiny_llama).digest, "bfloat16")
        run([half], tmp_path, self.CONFIG)
        assert len([*(tmp_path / "cache").iterdir()]) == 3


class TestRefusals:
    def test_tokenizers_that_differ(self, tiny_llama, tmp_path):
        other = shutil.copytree(tiny_llama, tmp_path / "other")
        text = (other / "tokenizer.json").read_text(encoding="utf-8")
        (other / "tokenizer.json").write_text(text.replace('"</s>"', '"<end>"'), encoding="utf-8")
        with pytest.raises(InvalidInput, match="have different tokenizers"):
            gather_material(
                [subject("base", tiny_llama), Subject("checkpoint", other, "", "")], [], 1
            )

    def test_documents_that_are_all_too_short(self, tiny_llama, tmp_path):
        with pytest.raises(InvalidInput, match=r"none of 8 documents has 4096 tokens"):
            run([subject("checkpoint", tiny_llama)], tmp_path, lengths=[128, 4096])
        assert not (tmp_path / "out").exists()

    def test_knobs_of_a_task_that_is_not_evaluated(self, tiny_llama, tmp_path):
        config = EvalConfig(tasks=["nll"], knobs=KNOBS)
        with pytest.raises(InvalidInput, match="knobs of tasks that are not evaluated: passkey"):
            run([subject("checkpoint", tiny_llama)], tmp_path, config)


def test_documents_of_one_name_are_told_apart_by_their_source(tiny_llama):
    twins = [Document("same", prose(0, 60), "here"), Document("same", prose(1, 60), "there")]
    material = gather_material([subject("base", tiny_llama)], twins, 2)
    assert {document.id for document in material.documents} == {"here:same", "there:same"}
    assert material.bos_token_ids == (0,)


@pytest.mark.parametrize(
    ("native", "longest", "lengths"),
    [
        (1024, 16384, [1024, 4096, 16384]),
        (1024, 3072, [1024, 3072]),
        (1024, 1024, [1024]),
    ],
)
def test_default_lengths_grow_fourfold_up_to_the_longest(native, longest, lengths):
    assert default_lengths(native, longest) == lengths
