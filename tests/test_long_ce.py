"""LongCE: short contexts by two cuts of a window, against one forward pass a target."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stack import CPU, base, trained, window  # noqa: F401  (a fixture among them)
from torch.nn import functional
from train_runs import STEPS, adapter_bytes, build_material, metrics, run, timeless

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.building import build
from giraffe_cli.config.train import LONGCE_KNOBS, TrainConfig
from giraffe_cli.control import control_config
from giraffe_cli.corpus.packed_facts import share_beyond
from giraffe_cli.errors import InvalidInput
from giraffe_cli.model.levers import Levers
from giraffe_cli.progress import SilentReporter
from giraffe_cli.report.facts_training import training_rows
from giraffe_cli.train.long_ce import ContextGain, short_nats
from giraffe_cli.train.objective import CrossEntropy, LongCE, make_objective
from giraffe_cli.train.setup import trainable_parameters
from giraffe_cli.train.short_context import check_short_context, cuts
from giraffe_cli.train.window_loss import WindowLoss

K = 4


class Told(SilentReporter):
    text = ""

    def info(self, message):
        self.text += message


LONG = {"loss": "longce", "short_context": 16}


def test_a_document_of_ten_in_pieces_of_four():
    from_start, from_half = cuts((10,), K)
    assert from_start.lengths == (4, 4, 2)
    assert from_half.lengths == (2, 4, 4)
    assert from_start.is_taken.nonzero().flatten().tolist() == [6, 7]
    assert from_half.is_taken.nonzero().flatten().tolist() == [4, 5, 8, 9]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple),
    short=st.integers(2, 17),
)
def test_every_deep_token_is_taken_once_and_sees_half_a_piece_or_more(lengths, short):
    places = [place for length in lengths for place in range(length)]
    deep = {n for n, place in enumerate(places) if place >= short}
    seen_by = []
    for pieces in cuts(lengths, short):
        assert sum(pieces.lengths) == len(places)
        assert max(pieces.lengths) <= short
        ends = set(torch.tensor(pieces.lengths).cumsum(0).tolist())
        assert set(torch.tensor(lengths).cumsum(0).tolist()) <= ends  # no piece spans documents
        seen = [n + 1 for length in pieces.lengths for n in range(length)]
        taken = pieces.is_taken.nonzero().flatten().tolist()
        assert all(short // 2 <= seen[n] <= short for n in taken)
        seen_by.append(set(taken))
    assert not seen_by[0] & seen_by[1]
    assert seen_by[0] | seen_by[1] == deep


def nats_one_by_one(loss, what, short_context):
    """{token: nats of its target given the tokens of its piece}, a forward pass each."""
    found = {}
    for pieces in cuts(what.seq_lengths, short_context):
        ends = torch.tensor(pieces.lengths).cumsum(0).tolist()
        for token in pieces.is_taken.nonzero().flatten().tolist():
            start = max([0, *[end for end in ends if end <= token]])
            seen = slice(start, token + 1)
            if what.labels[token] == -100:
                continue
            logits = loss.model(
                input_ids=what.input_ids[:, seen], position_ids=what.position_ids[:, seen]
            ).logits
            found[token] = functional.cross_entropy(logits[0, -1], what.labels[token]).item()
    return found


@pytest.fixture
def loss(base):  # noqa: F811
    return WindowLoss(trained(base), torch.float32, Levers("attention", mlp_tile=7, loss_chunk=5))


@pytest.mark.parametrize("positions", ["plain", "pose"])
def test_short_contexts_are_those_of_a_pass_a_target(loss, positions):
    what = window(positions)
    nats, is_compared = short_nats(loss, what, K, CPU)
    expected = nats_one_by_one(loss, what, K)
    assert is_compared.nonzero().flatten().tolist() == sorted(expected)
    assert len(expected) == sum(max(0, length - K - 1) for length in what.seq_lengths)
    for token, value in expected.items():
        assert nats[token].item() == pytest.approx(value, rel=1e-5)  # float32 in other shapes
    assert not nats[~is_compared].any()


@pytest.mark.parametrize(("cap", "floor"), [(5.0, 0.0), (1.05, 0.0), (5.0, 1.0), (5.0, 0.97)])
def test_value_and_gradient_are_those_of_weighted_cross_entropy(loss, cap, floor):
    what = window()
    told = LongCE(K, cap, floor).of_window(loss, what, CPU)
    told.minimised.backward()
    parameters = trainable_parameters(loss)
    found = torch.cat([p.grad.reshape(-1) for p in parameters.values()])
    for parameter in parameters.values():
        parameter.grad = None

    whole = loss(what.input_ids, what.labels, what.position_ids, what.seq_lengths)
    short = nats_one_by_one(loss, what, K)
    each, _ = loss.nll_of_targets(
        (what.input_ids, what.labels, what.position_ids, what.seq_lengths)
    )
    weights = torch.zeros(len(each))
    for token in (what.labels != -100).nonzero().flatten().tolist():
        gain = torch.tensor(short.get(token, each[token].item())) - each[token]
        weights[token] = gain.exp().clamp(floor, cap)
    assert (weights == cap).any() == (cap < 5)
    assert ((weights[what.labels != -100] < 1).any()) == (floor < 1)
    assert told.nats.item() == pytest.approx(whole.item(), rel=1e-6)
    assert told.weights.item() == pytest.approx(weights.sum().item(), rel=1e-5)
    assert told.minimised.item() == pytest.approx((weights * each).sum().item(), rel=1e-5)

    # every target's nats by themselves, through a forward pass each, weighted and summed
    total = torch.zeros(())
    ends = torch.tensor(what.seq_lengths).cumsum(0).tolist()
    for token in weights.nonzero().flatten().tolist():
        start = max([0, *[end for end in ends if end <= token]])
        seen = slice(start, token + 1)
        logits = loss.model(
            input_ids=what.input_ids[:, seen], position_ids=what.position_ids[:, seen]
        ).logits
        total = total + weights[token] * functional.cross_entropy(logits[0, -1], what.labels[token])
    total.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in parameters.values()])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_window_without_long_documents_is_cross_entropy_to_the_bit(loss):
    what = window(lengths=(4, 3, 2))
    results = []
    for objective in (LongCE(K, 5.0, 0.0), CrossEntropy()):
        for parameter in loss.parameters():
            parameter.grad = None
        told = objective.of_window(loss, what, CPU)
        told.minimised.backward()
        results.append((told, [p.grad.clone() for p in trainable_parameters(loss).values()]))
    (one, first), (other, second) = results
    assert one.minimised.item() == other.minimised.item()
    assert one.nats.item() == other.nats.item()
    assert one.weights.item() == 6
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_weights_end_at_the_cap_and_are_one_where_nothing_is_compared():
    short, is_compared = torch.tensor([9.0, 1.0, 2.0, 0.0]), torch.tensor([True, True, True, False])
    gain = ContextGain(short, is_compared, cap=5.0, floor=0.0)
    weights = gain(torch.tensor([1.0, 1.0, 3.0]), 0).tolist()
    assert weights == pytest.approx([5.0, 1.0, torch.tensor(-1.0).exp().item()])
    assert gain(torch.tensor([7.0]), 3).tolist() == [1.0]
    raised = ContextGain(short, is_compared, cap=5.0, floor=1.0)
    assert raised(torch.tensor([1.0, 1.0, 3.0]), 0).tolist() == [5.0, 1.0, 1.0]


def test_dropout_masks_of_the_trained_pass_are_those_without_it(base):  # noqa: F811
    model = trained(base, {"lora": {"rank": 2, "dropout": 0.3}})
    loss, what = WindowLoss(model, torch.float32, Levers("full")), window()
    plain = CrossEntropy().of_window(loss, what, CPU).nats.item()
    told = LongCE(K, 5.0, 0.0).of_window(loss, what, CPU)
    assert told.nats.item() == pytest.approx(plain, rel=1e-6)
    assert loss.training
    short, _ = short_nats(loss, what, K, CPU)
    assert torch.equal(short, short_nats(loss.eval(), what, K, CPU)[0])  # nothing is dropped there


def test_the_short_context_is_the_native_window_up_to_4k():
    def of(native, **knobs):
        return make_objective(TrainConfig(loss="longce", **knobs), native).short_context

    assert of(1024) == 1024
    assert of(8192) == 4096
    assert of(8192, short_context="1k") == 1024
    assert isinstance(make_objective(TrainConfig(), 1024), CrossEntropy)


def test_windows_that_are_no_longer_are_refused():
    check_short_context(TrainConfig(loss="longce"), 1025, 1024)
    check_short_context(TrainConfig(), 512, 1024)
    with pytest.raises(InvalidInput, match="no more than 1k") as failure:
        check_short_context(TrainConfig(loss="longce"), 1024, 1024)
    assert "train.short_context=256" in failure.value.hint


@pytest.mark.parametrize("knobs", [{"short_context": 16}, {"weight_cap": 3}, {"weight_floor": 0}])
def test_knobs_of_longce_need_it(knobs):
    with pytest.raises(ValueError, match="need loss: longce"):
        TrainConfig.model_validate(knobs)
    wrong = 2 if "weight_floor" in knobs else 1
    with pytest.raises(ValueError, match="greater than|the least is 2|less than or equal"):
        TrainConfig.model_validate({"loss": "longce", **dict.fromkeys(knobs, wrong)})


@pytest.fixture(scope="module")
def material(tiny_llama, tmp_path_factory):
    return build_material(tiny_llama, tmp_path_factory.mktemp("material"))


def test_a_run_tells_the_plain_loss_and_the_mean_weight(material, tmp_path):
    plain, weighted = tmp_path / "ce", tmp_path / "longce"
    run(material, plain)
    run(material, weighted, **LONG)
    lines = metrics(weighted)
    assert len(lines) == STEPS
    assert lines[0]["loss"] == pytest.approx(metrics(plain)[0]["loss"], rel=1e-6)
    assert all(0 < line["mean_weight"] < 5 and line["mean_weight"] != 1 for line in lines)
    assert "mean_weight" not in metrics(plain)[0]
    assert adapter_bytes(plain) != adapter_bytes(weighted)


def equal(one, two):
    for first, second in zip(timeless(one), timeless(two), strict=True):
        for name in ("loss", "mean_weight", "grad_norm"):
            assert second[name] == pytest.approx(first[name], rel=1e-4), name  # sums in other order


BY_KEYS = {"sequence_parallel": 2, "sequence_parallel_by": "keys"}


@pytest.mark.parametrize(
    "shared", [{"sequence_parallel": 2}, pytest.param(BY_KEYS, marks=pytest.mark.slow)]
)
def test_processes_that_share_windows_repeat_one(material, tmp_path, shared):
    knobs = {**LONG, "lora": {"rank": 2}, "steps": 2}
    run(material, tmp_path / "one", **knobs)
    run(material, tmp_path / "two", **knobs, processes=2, **shared)
    equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_processes_that_share_the_base_repeat_one(material, tmp_path):
    """Windows of their own, some without a long document: each must join in every gathering."""
    knobs = {"loss": "longce", "short_context": 20, "lora": {"rank": 2}, "checkpointing": "full"}
    run(material, tmp_path / "one", **knobs)
    run(material, tmp_path / "two", **knobs, processes=2, shard_base="full")
    equal(tmp_path / "one", tmp_path / "two")


def test_folders_of_cross_entropy_are_named_as_before_there_was_another_loss(material, tmp_path):
    run(material, tmp_path / "ce", steps=1)
    named = json.loads((tmp_path / "ce" / "adapter" / "manifest.json").read_text())
    assert not {"loss", *LONGCE_KNOBS} & set(named["inputs"]["train"])
    run(material, tmp_path / "longce", steps=1, loss="longce", short_context=16)
    named = json.loads((tmp_path / "longce" / "adapter" / "manifest.json").read_text())
    assert named["inputs"]["train"]["short_context"] == 16


def test_windows_of_short_documents_alone_are_refused_and_others_told(material, tmp_path):
    """The longest document of the windows has 41 tokens or fewer: none is left beyond 60 of 64."""
    with pytest.raises(InvalidInput, match="holds none") as failure:
        run(material, tmp_path / "none", steps=1, loss="longce", short_context=60)
    assert "train.short_context" in failure.value.hint
    assert not (tmp_path / "none" / "adapter").exists()
    reporter = Told()
    run(material, tmp_path / "some", reporter, steps=1, **LONG)
    share = share_beyond(material.packed, 16)
    assert 0 < share < 0.5
    assert f"LongCE weighs {100 * share:.0f} % of the tokens, those with 16 or" in reporter.text
    across = Told()
    run(material, tmp_path / "across", across, steps=1, across_documents=True, **LONG)
    assert f"weighs {100 * share_beyond(material.packed, 16, True):.0f} %" in across.text


def test_the_share_beyond_a_length_by_hand(tmp_path):
    """Rows of documents (5, 3) and (7): with 4 or more before them 1 + 3 of 15; of rows, 4 + 3."""
    table = pa.table({"seq_lengths": pa.array([[5, 3], [7]], pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "rows-00000.parquet")
    assert share_beyond(tmp_path, 4) == pytest.approx(4 / 15)
    assert share_beyond(tmp_path, 4, across_documents=True) == pytest.approx(7 / 15)
    assert share_beyond(tmp_path, 7) == 0


def test_a_control_whose_windows_are_no_longer_trains_by_cross_entropy(tiny_llama, tmp_path):
    checkpoint = inspect(str(tiny_llama), tmp_path)
    asked = {"loss": "longce", "weight_cap": 3, "window": "512", "control": True}
    for short, loss in ((None, "ce"), (32, "longce")):
        train = {**asked, "short_context": short}
        stage = build({"target_length": 512, "rope": {"strategy": "yarn"}, "train": train})
        found = control_config(stage, checkpoint).train
        assert (found.window, found.loss) == (128, loss)
        assert TrainConfig.model_validate(found.model_dump()) == found


def test_the_report_tells_the_loss_that_is_not_plain():
    report = {"steps": 3, "trained_tokens": 9, "train": TrainConfig().model_dump()}
    assert "loss" not in dict(training_rows(report))
    report["train"] = TrainConfig(loss="longce", weight_cap=3).model_dump()
    told = dict(training_rows(report))["loss"]
    assert "a short one (the native window, 4k at most), 1 at the least and 3 at" in told
    report["train"] = TrainConfig(loss="longce", short_context=2048, weight_floor=0).model_dump()
    assert "a short one (2k), 0 at the least and 5 at" in dict(training_rows(report))["loss"]
    control = {"steps": 3, "trained_tokens": 9, "window": 128, "final_loss": 2.0}
    for loss, told in (("ce", "128, cross-entropy, final loss"), ("longce", "128, final loss")):
        report["control"] = {**control, "loss": loss}
        assert told in dict(training_rows(report))["control run"]


def test_extend_refuses_windows_that_are_no_longer_before_it_packs(
    giraffe, tiny_llama, corpus, tmp_path
):
    done = giraffe(
        *("extend", "--model", tiny_llama, "--data", corpus, "--target-len", 512),
        *("--window", 128, "--set", "train.loss=longce", "--out", tmp_path / "run"),
    )
    assert done.code == 3
    assert "with one of 128, and a window holds no more than 128" in done.stderr
    assert "train.short_context=32" in done.stderr
    assert not (tmp_path / "run").exists()
