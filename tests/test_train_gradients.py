"""Sums over processes, in real gloo processes that this one forks."""

from __future__ import annotations

import json
import os
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.store import Row
from giraffe_cli.errors import UsageError
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.train import parallel
from giraffe_cli.train.data import WindowStream
from giraffe_cli.train.gradients import _buckets, any_of, start_equal, sum_over_processes
from giraffe_cli.train.layout import Layout
from giraffe_cli.train.objective import CrossEntropy
from giraffe_cli.train.setup import _of_the_group
from giraffe_cli.train.state import TrainState
from giraffe_cli.train.step import train_step


def in_processes(number, folder, tell):
    """What `tell(rank)` returns in each of `number` processes of one group."""
    children = []
    for rank in range(number):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                where = f"file://{folder / 'meeting'}"
                dist.init_process_group("gloo", init_method=where, rank=rank, world_size=number)
                (folder / f"{rank}.json").write_text(json.dumps(tell(rank)))
                dist.destroy_process_group()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    assert {os.waitpid(child, 0)[1] for child in children} == {0}
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(number)]


SHAPES = [(2, 3), (5,), (1,), (4, 4), (3,)]


def parameters_of(rank):
    """Five parameters of two types; the gradient of the second is missing in process 0, that of
    the last in every process, and the fourth lies transposed."""
    generator = torch.Generator().manual_seed(rank)
    found = []
    for place, shape in enumerate(SHAPES):
        dtype = torch.float64 if place == 2 else torch.float32
        parameter = torch.zeros(shape, dtype=dtype, requires_grad=True)
        if not (place == 4 or (place == 1 and rank == 0)):
            parameter.grad = torch.randn(shape, generator=generator, dtype=dtype)
        if place == 3:
            parameter.grad = parameter.grad.t()
        found.append(parameter)
    return found


@pytest.mark.parametrize(
    ("bucket_bytes", "sizes"),
    [(1, [[2], [3], [1], [4], [2]]), (20, [[2, 3], [1, 4], [2]]), (1 << 20, [[2, 3, 1, 4], [2]])],
)
def test_a_message_is_no_larger_than_asked_for_and_of_one_type(bucket_bytes, sizes):
    """Four bytes a number; the last gradient is of another type."""
    gradients = [torch.ones(count) for count in (2, 3, 1, 4)]
    gradients.append(torch.ones(2, dtype=torch.float64))
    buckets = [[len(one) for one in bucket] for bucket in _buckets(gradients, bucket_bytes)]
    assert buckets == sizes


@pytest.mark.parametrize("bucket_bytes", [1, 40, 64 << 20])
def test_gradients_are_summed_whatever_the_buckets_are(tmp_path, bucket_bytes):
    def tell(rank):
        parameters = parameters_of(rank)
        sum_over_processes(parameters, bucket_bytes)
        return [parameter.grad.tolist() for parameter in parameters]

    told = in_processes(3, tmp_path, tell)
    assert told[0] == told[1] == told[2]
    everyone = [parameters_of(rank) for rank in range(3)]
    for place, total in enumerate(told[0]):
        gradients = [p[place].grad for p in everyone if p[place].grad is not None]
        expected = sum(gradients) if gradients else torch.zeros(SHAPES[place])
        # float32 sums of three numbers in another order
        torch.testing.assert_close(torch.tensor(total), expected.float(), rtol=1e-6, atol=1e-6)


def test_alone_a_missing_gradient_is_zeros_too():
    parameters = parameters_of(0)
    kept = parameters[0].grad.clone()
    sum_over_processes(parameters)
    assert parameters[4].grad.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(parameters[0].grad, kept)


def test_one_process_that_asks_is_heard_by_all_and_all_start_from_the_first(tmp_path):
    def tell(rank):
        weights = torch.full((2,), float(rank + 5), requires_grad=True)
        start_equal([weights])
        device = torch.device("cpu")
        return any_of(rank == 1, device), any_of(False, device), weights.tolist()

    assert in_processes(2, tmp_path, tell) == [[True, False, [5.0, 5.0]]] * 2


# ── layouts ──────────────────────────────────────────────────────────────────────────────────────


class Rows:
    """Ten rows of 8 tokens in documents of 5 and 3, every third in ones of 7 and 1."""

    lengths = np.where(np.arange(10)[:, None] % 3, [5, 3], [7, 1]).astype(np.int32)
    squares = (lengths.astype(float) ** 2).sum(1)

    def __len__(self):
        return 10

    def row(self, index):
        ids = (np.arange(8, dtype=np.int32) * (index + 3)) % 11
        return Row(ids, self.lengths[index], [f"a{index}", f"b{index}"])


STREAM = WindowStream(Rows(), make_positions("pose"), 8, 100, 3, windows_per_step=4)


def test_neighbours_share_windows_and_slice_0_counts_them():
    layouts = [Layout(rank, 4, 2) for rank in range(4)]
    assert [(at.window_rank, at.window_processes, at.slice_rank) for at in layouts] == [
        (0, 2, 0),
        (0, 2, 1),
        (1, 2, 0),
        (1, 2, 1),
    ]
    places = [STREAM.share(0, at.window_rank, at.window_processes) for at in layouts]
    shares = [STREAM.of_step(0, share) for share in places]
    names = [[window.doc_ids for window in share] for share in shares]
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert names[0] + names[2] != names[0] + names[0]
    counted = [at.counts(share) for at, share in zip(layouts, shares, strict=True)]
    assert counted == [(12, 16), (0, 0), (12, 16), (0, 0)]
    assert places == [[0, 2], [0, 2], [1, 3], [1, 3]]


class SlicedLoss(torch.nn.Module):
    """A bigram model whose loss covers this slice's share of the targets, as sequence parallelism
    will: every `of`-th one."""

    def __init__(self, at, of):
        super().__init__()
        self.group = None  # no dropout to draw apart
        self.trained_base = None  # whole in each process
        self.table = torch.nn.Parameter(torch.linspace(-1, 1, 121).reshape(11, 11))
        self.at, self.of = at, of

    def end_backward(self):
        pass

    moved = end_backward

    def weighted(self, tensors):
        input_ids, labels, *_ = tensors
        kept = [n for n in range(len(labels)) if labels[n] != -100][self.at :: self.of]
        logits = self.table[input_ids[0, kept]]
        nats = torch.nn.functional.cross_entropy(logits, labels[kept], reduction="sum")
        return nats, torch.tensor([nats.item(), len(kept)])


def one_step(layout):
    """(loss, gradient norm, tokens, parameters) after a step of `layout`'s process."""
    model = SlicedLoss(layout.slice_rank, layout.sequence_parallel)
    run = SimpleNamespace(
        layout=layout,
        job=SimpleNamespace(config=TrainConfig(windows_per_step=4, clip_norm=0.1)),
        stream=STREAM,
        state=TrainState(),
        device=torch.device("cpu"),
        model=model,
        objective=CrossEntropy(),
        parameters={"table": model.table},
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
    )
    outcome = train_step(run, rate=0.5)
    assert outcome.mean_weight == 1
    return outcome.loss, outcome.grad_norm, outcome.num_tokens, model.table.tolist()


@pytest.mark.parametrize(("processes", "parallelism"), [(2, 1), (2, 2), (4, 2)])
def test_a_step_is_the_same_in_every_layout(tmp_path, processes, parallelism):
    alone = one_step(Layout())
    told = in_processes(processes, tmp_path, lambda r: one_step(Layout(r, processes, parallelism)))
    for loss, norm, tokens, table in told:
        assert tokens == alone[2] == 32
        assert loss == pytest.approx(alone[0], rel=1e-6)  # float32 sums in another order
        assert norm == pytest.approx(alone[1], rel=1e-5)
        torch.testing.assert_close(torch.tensor(table), torch.tensor(alone[3]))


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({"windows_per_step": 1, "sequence_parallel": 2}, 0, 2),
        ({"windows_per_step": 1, "sequence_parallel": 2}, 8, 2),
        ({"windows_per_step": 2, "sequence_parallel": 2}, 5, 4),
        ({"windows_per_step": 1, "sequence_parallel": 2, "processes": 2}, 0, 2),
    ],
)
def test_windows_are_shared_by_groups(settings, gpus, expected):
    assert parallel.choose_processes(TrainConfig(**settings), gpus, SilentReporter()) == expected


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        ({"windows_per_step": 1, "sequence_parallel": 2, "processes": 3}, 0),
        ({"windows_per_step": 1, "sequence_parallel": 2, "processes": 4}, 0),
        ({"windows_per_step": 1, "sequence_parallel": 4}, 2),
    ],
)
def test_groups_that_cannot_be_had_are_refused(settings, gpus):
    with pytest.raises(UsageError):
        parallel.choose_processes(TrainConfig(**settings), gpus, SilentReporter())


def seconds_of_patience(layout):
    """Of the groups that `layout` makes, and of the one of all processes as Accelerate is told."""
    groups = [layout.sequence_group().group, layout.base_group()]
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    told = [one.options._timeout for one in backends] + [_of_the_group().to_kwargs()["timeout"]]
    return [one.total_seconds() for one in told]


def test_processes_wait_for_a_peer_that_saves_or_has_longer_documents(tmp_path):
    """torch's own 10 minutes of NCCL, and 30 of gloo, are less than a large checkpoint takes."""
    found = in_processes(2, tmp_path, lambda r: seconds_of_patience(Layout(r, 2, 2, nodes=2)))
    assert found == [[3 * 3600] * 3] * 2
