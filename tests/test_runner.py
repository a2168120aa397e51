"""The runner against stock transformers, against fresh caches, and against being killed."""

from __future__ import annotations

import gzip
import json
import shutil

import numpy as np
import pytest
from conftest import prose
from evaluated import build_other_llama, subject

from giraffe_cli.config.evaluate import EvalConfig
from giraffe_cli.corpus.base import Document
from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.evals.base import make_task
from giraffe_cli.evals.runner import evaluate
from giraffe_cli.evals.samples import Texts, default_lengths, gather_material
from giraffe_cli.evals.subject import Subject
from giraffe_cli.evals.tasks.passkey import Passkey
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rundir import digest_bytes, read_json, sealed

DOCUMENTS = [Document(f"doc-{i}", prose(i, 60), "prose") for i in range(8)]
TASKS = ["nll", "passkey"]
KNOBS = {"nll": {"anchors": 1, "targets": 16}, "passkey": {"depths": 2, "trials": 1}}


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory):
    return build_other_llama(tmp_path_factory.mktemp("other-llama"))


def material_of(subjects, documents, most):
    config = EvalConfig(tasks=["nll"], documents=most)
    return gather_material(subjects, Texts(documents), config, [128, 384], 128)


def run(subjects, tmp_path, config=None, cache="cache", lengths=(128, 384), documents=DOCUMENTS):
    reporter = SilentReporter()
    results = evaluate(
        subjects,
        config or EvalConfig(tasks=TASKS, knobs=KNOBS),
        lengths=list(lengths),
        native_length=128,
        seed=0,
        texts=Texts(documents),
        out=tmp_path / "out",
        cache=tmp_path / cache,
        reporter=reporter,
    )
    return results, reporter


@pytest.fixture(scope="module")
def both(tiny_llama, other_llama, tmp_path_factory):
    """Two models evaluated: results, reporter, folder."""
    folder = tmp_path_factory.mktemp("both")
    subjects = [subject("base", tiny_llama), subject("checkpoint", other_llama)]
    return *run(subjects, folder), folder


class TestResults:
    def test_what_the_file_promises(self, both, tiny_llama):
        results, _, folder = both
        assert read_json(folder / "out" / "results.json") == results
        assert results["schema_version"] == 2
        assert results["seed"] == 0
        base = results["models"]["base"]
        assert base["sha256"] == subject("base", tiny_llama).digest
        assert base["rope"]["rope_parameters"]["rope_theta"] == 10000.0
        assert base["dtype"] == "float32"
        assert {"nll", "passkey", "passkey.ranked"} <= {*base["effective_length"]}
        assert [*base["tasks"]["nll"]] == ["128", "384"]
        assert {"mean", "ci_low", "ci_high", "n"} <= {*base["tasks"]["nll"]["128"]}
        assert base["tasks"]["nll"]["128"]["n"] == 8
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
        # subjects * (documents at 128 and 384, shuffled at 384; 2 depths and a control)
        assert len(lines) == 2 * (3 * 8 + 3)
        assert lines[0]["subject"] == "base"
        assert lines[0]["scores"][""] == lines[0]["mean_nll"]
        assert lines[26]["details"] == {"control": True}

    def test_every_prompt_lies_beside_them_once(self, both):
        _, _, folder = both
        lines = [json.loads(x) for x in (folder / "out" / "samples.jsonl").read_text().splitlines()]
        packed = gzip.decompress((folder / "out" / "prompts.jsonl.gz").read_bytes())
        prompts = [json.loads(x) for x in packed.splitlines()]
        assert len(prompts) == 27
        assert {p["prompt_sha256"] for p in prompts} == {x["prompt_sha256"] for x in lines}
        for prompt in prompts:
            ids = np.asarray(prompt["token_ids"], "<i4")
            assert digest_bytes(ids.tobytes()) == prompt["prompt_sha256"]

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
            "evaluation: 27 samples of nll, passkey at 128, 384; tokens to read: "
            f"base {tokens:,} of {tokens:,}, checkpoint {tokens:,} of {tokens:,}"
        )
        for line, name in zip(reporter.lines[1:], ("base", "checkpoint"), strict=True):
            assert line.startswith(f"{name}: {tokens:,} tokens to read, about ")

    def test_the_same_seed_gives_the_same_bytes(self, both, tiny_llama, other_llama, tmp_path):
        results, _, folder = both
        again, _ = run([subject("base", tiny_llama), subject("checkpoint", other_llama)], tmp_path)
        assert {**again, "seconds": 0} == {**results, "seconds": 0}
        for name in ("samples.jsonl", "prompts.jsonl.gz"):
            first, second = (p / "out" / name for p in (folder, tmp_path))
            assert first.read_bytes() == second.read_bytes()

    def test_few_documents_are_warned_of(self, tiny_llama, tmp_path):
        config = EvalConfig(tasks=["nll"], knobs={"nll": KNOBS["nll"]}, documents=3)
        results, _ = run([subject("checkpoint", tiny_llama)], tmp_path, config)
        assert results["warnings"][0] == (
            "nll: 3 documents; intervals from fewer than 8 are wide, and hold "
            "the truth where documents are alike"
        )
        assert results["paired"]["nll"]["checkpoint_minus_base"] == {}
        assert results["short_context"] == {}


def scores_of(results):
    """Every mean of `models`, by its path."""
    return {
        (name, measure, length): score["mean"]
        for name, model in results["models"].items()
        for measure, by_length in model["tasks"].items()
        for length, score in by_length.items()
    }


class TestHowItIsRead:
    """Cost may change with it, scores may not."""

    def expect_same(self, results, changed):
        before, after = scores_of(results), scores_of(changed)
        assert before.keys() == after.keys()
        assert len({measure for _, measure, _ in before}) >= 6
        for place, score in before.items():
            # float32 sums in another order; shares of right answers must be equal
            allowed = 1e-4 if place[1].startswith("nll") else 0
            assert after[place] == pytest.approx(score, abs=allowed)

    @pytest.mark.parametrize("batch_tokens", [0, 300, 100_000])
    def test_rows_of_any_size(self, both, tiny_llama, other_llama, tmp_path, batch_tokens):
        results, _, _ = both
        subjects = [subject("base", tiny_llama), subject("checkpoint", other_llama)]
        config = EvalConfig(tasks=TASKS, knobs=KNOBS, batch_tokens=batch_tokens)
        changed, _ = run(subjects, tmp_path, config)
        self.expect_same(results, changed)

    def test_tasks_in_another_order(self, both, tiny_llama, other_llama, tmp_path):
        results, _, _ = both
        subjects = [subject("base", tiny_llama), subject("checkpoint", other_llama)]
        changed, _ = run(subjects, tmp_path, EvalConfig(tasks=TASKS[::-1], knobs=KNOBS))
        assert [*changed["settings"]["tasks"]] == TASKS[::-1]
        self.expect_same(results, changed)


class TestResuming:
    CONFIG = EvalConfig(tasks=["nll"], knobs={"nll": KNOBS["nll"]})

    def test_finished_samples_are_not_run_again(self, tiny_llama, tmp_path):
        folder = shutil.copytree(tiny_llama, tmp_path / "model")
        tested = subject("checkpoint", folder)
        first, _ = run([tested], tmp_path, self.CONFIG)
        (folder / "model.safetensors").unlink()  # opening the model again would fail
        second, _ = run([tested], tmp_path, self.CONFIG)
        assert {**second, "seconds": 0} == {**first, "seconds": 0}

    def test_what_read_a_sample_is_told_and_warned_of_where_it_is_another(
        self, tiny_llama, tmp_path
    ):
        tested = subject("checkpoint", tiny_llama)
        first, _ = run([tested], tmp_path, self.CONFIG)
        ((here, samples),) = first["read_by"]["checkpoint"].items()
        assert here.startswith("torch ")
        assert here.endswith("cpu, 256 tokens at a time")
        (file,) = (tmp_path / "cache").iterdir()
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            del line["giraffe_seal"]
        lines[0]["read_by"] = "torch 1.0"
        del lines[1]["read_by"]  # by an earlier giraffe
        file.write_text("".join(f"{json.dumps(sealed(line))}\n" for line in lines))
        second, reporter = run([tested], tmp_path, self.CONFIG)
        assert second["read_by"]["checkpoint"] == {
            "not recorded": 1, "torch 1.0": 1, here: samples - 2,
        }  # fmt: skip
        told = f"1 of {samples} samples were read earlier by torch 1.0, here it is {here}"
        assert told in "\n".join(second["warnings"])
        assert second["models"] == first["models"]

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
        knobs = {"passkey": {**KNOBS["passkey"]}}
        config = EvalConfig(tasks=["passkey"], knobs=knobs)
        run([tested], tmp_path, config, lengths=[384])
        (file,) = (tmp_path / "cache").iterdir()
        before = file.read_bytes()
        run([tested], tmp_path, config, lengths=[384, 512])
        after = file.read_bytes()
        assert after.startswith(before)
        assert after.count(b"\n") == 2 * before.count(b"\n") == 6

    def test_other_weights_or_types_share_nothing(self, tiny_llama, other_llama, tmp_path):
        run([subject("checkpoint", tiny_llama)], tmp_path, self.CONFIG)
        run([subject("checkpoint", other_llama)], tmp_path, self.CONFIG)
        half = Subject("checkpoint", tiny_llama, subject("x", tiny_llama).digest, "bfloat16")
        run([half], tmp_path, self.CONFIG)
        assert len([*(tmp_path / "cache").iterdir()]) == 3


def with_merges(model, folder, change):
    """A copy of `model` whose tokenizer has other merges under the same vocabulary."""
    shutil.copytree(model, folder)
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    value["model"]["merges"] = change(value["model"]["merges"])
    (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


class TestRefusals:
    def test_tokenizers_that_differ(self, tiny_llama, tmp_path):
        other = shutil.copytree(tiny_llama, tmp_path / "other")
        text = (other / "tokenizer.json").read_text(encoding="utf-8")
        (other / "tokenizer.json").write_text(text.replace('"</s>"', '"<end>"'), encoding="utf-8")
        with pytest.raises(InvalidInput, match="have different tokenizers"):
            material_of([subject("base", tiny_llama), Subject("checkpoint", other, "", "")], [], 1)

    @pytest.mark.parametrize("documents", [[], [Document("a", prose(0, 60), "here")]])
    def test_one_vocabulary_that_cuts_otherwise_is_another_tokenizer(
        self, tiny_llama, tmp_path, documents
    ):
        """As a conversion that lost merges leaves it: the model's own loss would be another."""
        other = with_merges(tiny_llama, tmp_path / "other", lambda merges: merges[:40])
        subjects = [subject("base", tiny_llama), Subject("checkpoint", other, "", "")]
        with pytest.raises(InvalidInput, match="cut text apart: [0-9.]+% of the tokens, such as"):
            material_of(subjects, documents, 1)

    def test_a_few_tokens_that_are_cut_otherwise_are_told(self, tiny_llama, tmp_path):
        other = with_merges(tiny_llama, tmp_path / "other", lambda merges: merges[:-1])
        subjects = [subject("base", tiny_llama), Subject("checkpoint", other, "", "")]
        last = json.loads((tiny_llama / "tokenizer.json").read_text())["model"]["merges"][-1]
        rare = "".join(last).replace("Ġ", " ")
        (told,) = material_of(subjects, [Document("a", prose(0, 99) + rare, "here")], 1).cut_apart
        assert "the tokenizer of checkpoint cuts" in told
        assert "otherwise than that of base, whose tokens all models read" in told
        # rules that are others and cut the same are no difference
        assert material_of(subjects, [Document("a", "giraffe", "here")], 1).cut_apart == ()

    def test_what_follows_the_cutting_is_no_difference(self, tiny_llama, tmp_path):
        """A GGUF of Llama 3 has not its post-processor, which moves where a token is said to begin,
        and marks added tokens otherwise; both cut alike."""
        folders = []
        for name, trims in (("hf", True), ("gguf", False)):
            folder = shutil.copytree(tiny_llama, tmp_path / name)
            value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            trimming = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": trims}
            value["post_processor"] = {**trimming, "use_regex": True}
            value["added_tokens"][0]["normalized"] = trims
            (folder / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
            folders.append(folder)
        subjects = [Subject(folder.name, folder, "", "") for folder in folders]
        assert material_of(subjects, [Document("a", prose(0, 99), "here")], 1).cut_apart == ()

    def test_tokenizers_that_begin_a_text_otherwise_are_told(self, tiny_llama, tmp_path):
        """Both read what the first one's rules give: the other's own scores are 0.07 nats off."""
        other = shutil.copytree(tiny_llama, tmp_path / "other")
        value = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
        (other / "tokenizer.json").write_text(json.dumps({**value, "post_processor": None}))
        subjects = [subject("base", tiny_llama), Subject("checkpoint", other, "", "")]
        assert material_of(subjects, [], 1).begins_apart == "checkpoint"
        assert material_of(subjects[:1], [], 1).begins_apart == ""

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
    material = material_of([subject("base", tiny_llama)], twins, 2)
    assert {document.id for document in material.documents} == {"here:same", "there:same"}
    assert material.bos_token_ids == (0,)


class TestDocumentsOfOneId:
    def ids(self, tiny_llama, *named):
        documents = [Document(name, "word " * (60 - i), src) for i, (src, name) in named]
        material = material_of([subject("base", tiny_llama)], documents, 9)
        return [document.id for document in material.documents]

    def test_what_still_repeats_is_numbered(self, tiny_llama):
        named = enumerate([("a", "x"), ("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")])
        assert self.ids(tiny_llama, *named) == ["a:x", "a:x#2", "b:x", "y", "a:x#3"]

    def test_a_number_that_is_taken_is_passed_over(self, tiny_llama):
        named = enumerate([("a", "x"), ("a", "x"), ("c", "a:x#2"), ("c", "a:x")])
        assert self.ids(tiny_llama, *named) == ["a:x#3", "a:x#4", "a:x#2", "a:x"]

    def test_each_has_its_own_loss(self, tiny_llama, tmp_path):
        """Eight texts under one id: the losses of the same eight under ids of their own."""
        config = EvalConfig(tasks=["nll"], knobs={"nll": KNOBS["nll"]})
        alike = [Document("x", document.text, "one") for document in DOCUMENTS]
        tested = subject("checkpoint", tiny_llama)
        for folder, documents in (("apart", DOCUMENTS), ("alike", alike)):
            run([tested], tmp_path / folder, config, documents=documents)
        apart, same = (
            [json.loads(x) for x in (tmp_path / n / "out/samples.jsonl").read_text().splitlines()]
            for n in ("apart", "alike")
        )
        losses = [[line["mean_nll"] for line in lines if "far" not in line["details"]]
                  for lines in (apart, same)]  # fmt: skip
        assert sorted(losses[0]) == sorted(losses[1])
        assert len({line["cluster"] for line in same}) == 8


def test_all_are_asked_through_the_first_template_there_is(tiny_llama, tmp_path):
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    asking = shutil.copytree(tiny_llama, tmp_path / "asking")
    (asking / "chat_template.jinja").write_text(template)
    config = EvalConfig(tasks=["nll"], chat=True)
    names = ("base", "checkpoint")
    subjects = [subject(n, f) for n, f in zip(names, (tiny_llama, asking), strict=True)]
    material = gather_material(subjects, Texts(DOCUMENTS), config, [128], 128)
    assert material.decode(material.chat("what is green")) == "[what is green]"
    chooser = [subjects[0], subject("evaluator", asking)]
    with pytest.raises(InvalidInput, match="no tokenizer of the evaluated models"):
        gather_material(chooser, Texts(DOCUMENTS), config, [128], 128)


def test_two_samples_under_one_key_are_our_fault_and_said(tiny_llama, monkeypatch, tmp_path):
    made = Passkey.examples
    monkeypatch.setattr(Passkey, "examples", lambda *given: made(*given) * 2)
    config = EvalConfig(tasks=["passkey"], knobs={"passkey": KNOBS["passkey"]})
    with pytest.raises(
        GiraffeError, match="task `passkey` makes 2 samples `depth 0 trial 0` at 384"
    ) as caught:
        run([subject("checkpoint", tiny_llama)], tmp_path, config)
    assert "fault of the task" in caught.value.hint


@pytest.mark.parametrize("task", ["passkey", "niah", "lines"])
def test_more_depths_than_their_names_tell_apart_are_refused(task):
    assert make_task(task, {"depths": 101}).depths == 101
    with pytest.raises(InvalidInput, match="depths is 102, must be 1 to 101"):
        make_task(task, {"depths": 102})


def test_a_task_named_twice_is_evaluated_once(tiny_llama, tmp_path):
    tested = subject("checkpoint", tiny_llama)
    knobs = {"passkey": KNOBS["passkey"]}
    once, twice = (
        run([tested], tmp_path / str(len(names)), EvalConfig(tasks=names, knobs=knobs))[0]
        for names in (["passkey"], ["passkey"] * 2)
    )
    assert once["models"]["checkpoint"]["tasks"]["passkey"]["384"]["n"] == 2
    assert twice["models"] == once["models"]


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


def test_one_model_under_two_names_is_told_and_read_once(tiny_llama, tmp_path):
    """A path that was mistaken reads as an extension that changed nothing."""
    both = [subject(name, tiny_llama) for name in ("base", "checkpoint")]
    results, reporter = run(
        both, tmp_path, EvalConfig(tasks=["passkey"], knobs={"passkey": KNOBS["passkey"]})
    )
    told = "base and checkpoint are the same model: every difference between them is 0"
    assert told in results["warnings"]
    assert told in reporter.warnings
    (kept,) = (tmp_path / "cache").iterdir()
    assert len({*kept.read_bytes().splitlines()}) == len(kept.read_bytes().splitlines())
