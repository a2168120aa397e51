"""The decoder layers under every lever: the same numbers, and no work or tensor too much."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.store import Row
from giraffe_cli.errors import GiraffeError
from giraffe_cli.model.attention import register_attention
from giraffe_cli.model.fused import why_not_fused
from giraffe_cli.model.kernels import CpuKernel
from giraffe_cli.model.levers import Levers
from giraffe_cli.model.loading import load_model
from giraffe_cli.model.plain import PlainLayer
from giraffe_cli.model.store import ArenaStore, DeviceStore, DiskStore
from giraffe_cli.model.trainable import causal_model, make_trainable
from giraffe_cli.rope.scheme import make_positions
from giraffe_cli.train.data import Window, WindowStream, next_token_labels
from giraffe_cli.train.setup import trainable_parameters, window_nats
from giraffe_cli.train.window_loss import WindowLoss

LENGTHS = (11, 5, 8)
CPU = torch.device("cpu")
OPEN_FILES = Path("/proc/self/fd")
EXACT = [
    Levers("none"),
    Levers("attention"),
    Levers("full"),
    Levers("attention", "disk"),
    Levers("full", "disk"),
    Levers("attention", "disk", offload_layers=1),
    Levers("attention", attention_layers=1),
    Levers("full", "disk", whole_layers=1),
    Levers("attention", whole_layers=2),
]
"""No sum is taken in another order: equal to the bit."""
CLOSE = [
    Levers("attention", mlp_tile=7),
    Levers("full", mlp_tile=1),
    Levers(loss_chunk=5),
    Levers("none", fused=True),
    Levers("attention", mlp_tile=7, fused=True),
    Levers("attention", mlp_tile=7, projection_tile=5, head_groups=2),
    Levers("full", "disk", mlp_tile=0, projection_tile=24),
    Levers("attention", attention_layers=1, projection_tile=7, fused=True, head_groups=2),
    Levers("full", mlp_tile=7, projection_tile=5, fused=True, whole_layers=1),
]
"""Products of other shapes: float32 sums in another order."""


def window(positions: str = "plain", lengths=LENGTHS, seed: int = 0) -> Window:
    ids = np.random.default_rng(seed).integers(2, 384, sum(lengths)).astype(np.int32)
    row = Row(ids, np.array(lengths, np.int32), [f"doc-{n}" for n in range(len(lengths))])
    generator = np.random.default_rng(1)
    scheme = make_positions(positions, {})
    where = np.concatenate([scheme.position_ids(n, 512, generator) for n in lengths])
    return Window(
        torch.from_numpy(ids.astype(np.int64))[None],
        torch.from_numpy(next_token_labels(row)),
        torch.from_numpy(where)[None],
        tuple(lengths),
        tuple(row.doc_ids),
        dropout_seed=3,
    )


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_model(tiny_llama, dtype=torch.float32, attn_implementation=register_attention())


def trained(base, train=None, dtype=torch.float32):
    """`base` under adapters whose products are not zero."""
    config = TrainConfig.model_validate(train or {"lora": {"rank": 2}})
    model = make_trainable(copy.deepcopy(base), config, dtype, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.train()


def gradients(model, levers, folder, what, dtype=torch.float32):
    """(nats, every gradient end to end) of one window."""
    loss = WindowLoss(model, dtype, levers, folder=folder)
    parameters = trainable_parameters(loss)
    for parameter in parameters.values():
        parameter.grad = None
    nats = window_nats(loss, what, CPU)
    nats.backward()
    return nats.item(), torch.cat([p.grad.reshape(-1) for p in parameters.values()])


def files_open_in(folder):
    """Files without a name among them."""
    opened = [str(link.readlink()) for link in OPEN_FILES.iterdir() if link.is_symlink()]
    return [path for path in opened if path.startswith(f"{folder}/")]


@pytest.mark.skipif(not OPEN_FILES.exists(), reason="needs Linux's /proc")
def test_a_window_lets_go_of_what_it_kept_before_the_next_one(base, tmp_path):
    """A loss that is still named, as that of the window before is in a step, held its file, and on
    a GPU all its pinned memory, while the next window took as much again."""
    loss = WindowLoss(trained(base), torch.float32, Levers("full", "disk"), folder=tmp_path)
    nats = window_nats(loss, window(), CPU)
    assert len(files_open_in(tmp_path)) == 1
    nats.backward()
    assert files_open_in(tmp_path) == []
    assert nats.grad_fn is not None


def model_layers(model):
    return causal_model(model).model.layers


KINDS = {
    "adapters": {"lora": {"rank": 2}},
    "dropout": {"lora": {"rank": 2, "dropout": 0.3}},
    "embeddings and norms": {"lora": {"rank": 2, "also_train": ["embeddings", "norms"]}},
    "one layer only": {"lora": {"rank": 2, "targets": ["model.layers.1.mlp.up_proj"]}},
    "everything": {"method": "full"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levers", EXACT[1:] + CLOSE, ids=str)
def test_every_lever_gives_the_gradients_that_autograd_gives(base, levers, kind, tmp_path):
    model = trained(base, KINDS[kind])
    if kind == "dropout" and (levers.mlp_tile or levers.projection_tile):
        pytest.skip("masks are drawn tile by tile: other masks, as good")
    if levers.fused and why_not_fused(model_layers(model)):
        pytest.skip(f"not fused: {why_not_fused(model_layers(model))}")
    nats, expected = gradients(model, EXACT[0], tmp_path, window())
    ours, found = gradients(model, levers, tmp_path, window())
    assert expected.abs().max() > 0
    if levers in EXACT:
        assert ours == nats
        assert torch.equal(found, expected)
    else:
        assert ours == pytest.approx(nats, rel=1e-6)
        torch.testing.assert_close(found, expected, atol=4e-6 * expected.abs().max(), rtol=0)


def test_one_buffer_holds_the_gradient_of_every_layer(base, tmp_path, monkeypatch):
    """Autograd holds the first layer's until the end, so another one would be there beside it."""
    model, found = trained(base, KINDS["adapters"]), []
    backward = PlainLayer.mlp_backward

    def seen(self, hidden, slope, context):
        found.append(slope.untyped_storage().data_ptr())
        return backward(self, hidden, slope, context)

    monkeypatch.setattr(PlainLayer, "mlp_backward", seen)
    gradients(model, Levers("full", mlp_tile=9), tmp_path, window())
    assert len(found) == 2 * 3, "layers, tiles"
    assert len(set(found)) == 1


MORE_KINDS = {
    **{name: KINDS[name] for name in ("adapters", "embeddings and norms", "everything")},
    "no query, no first norm": {"lora": {"rank": 3, "targets": ["k_proj", "o_proj", "down_proj"]}},
    "behind attention only": {"lora": {"rank": 1, "targets": ["o_proj", "gate_proj"]}},
    "DoRA": {"lora": {"rank": 2, "use_dora": True, "targets": ["q_proj", "v_proj", "up_proj"]}},
    "PiSSA": {"lora": {"rank": 2, "init_lora_weights": "pissa", "use_rslora": True}},
}
TILE = st.sampled_from([0, 1, 5, 64])


@st.composite
def drawn_levers(draw):
    checkpointing = draw(st.sampled_from(["attention", "full"]))
    tile = draw(TILE)
    return Levers(
        checkpointing,
        draw(st.sampled_from(["none", "disk"])),
        mlp_tile=draw(TILE),
        loss_chunk=draw(st.sampled_from([3, 256])),
        offload_layers=draw(st.integers(0, 1)),
        attention_layers=draw(st.integers(0, 2)) if checkpointing == "attention" else 0,
        projection_tile=tile,
        head_groups=draw(st.integers(1, 2)) if tile else 1,
        whole_layers=draw(st.integers(0, 1)),
    )


@pytest.fixture(scope="module")
def models(base):
    """One of each kind, in float64 but for what norms compute in."""
    return {name: trained(base, kind).double() for name, kind in MORE_KINDS.items()}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    levers=drawn_levers(),
    kind=st.sampled_from([*MORE_KINDS]),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
)
def test_levers_do_not_get_in_each_others_way(models, tmp_path_factory, levers, kind, lengths):
    """Drawn together, over windows shorter than a tile and no multiple of one."""
    model, folder = models[kind], tmp_path_factory.getbasetemp()
    what = window(lengths=tuple(lengths))
    nats, expected = gradients(model, EXACT[0], folder, what, torch.float64)
    fused = [] if why_not_fused(model_layers(model)) else [replace(levers, fused=True)]
    for drawn in [levers, *fused]:
        ours, found = gradients(model, drawn, folder, what, torch.float64)
        assert ours == pytest.approx(nats, rel=1e-6)
        assert found.isfinite().all()
        # but for the rounding of norms, which are taken in float32
        torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max(), rtol=0)


@pytest.mark.parametrize(("tile", "in_attention"), [(0, 0.0), (5, 0.0), (5, 0.3)])
def test_dropout_draws_the_same_masks_again_under_tiles(base, tile, in_attention, tmp_path):
    """Twice the same window: what is recomputed draws what the forward drew, tile by tile, and of
    each group of heads."""
    model = trained(base, KINDS["dropout"])
    for layer in model_layers(model):
        layer.self_attn.attention_dropout = in_attention
    kept = "full" if in_attention else "attention"
    levers = Levers(kept, mlp_tile=7, projection_tile=tile, head_groups=2)
    first, again = (gradients(model, levers, tmp_path, window()) for _ in range(2))
    assert torch.equal(first[1], again[1])
    # and against autograd through the very same draws, by finite differences of one weight
    name, weight = next(iter(trainable_parameters(model).items()))
    loss = WindowLoss(model, torch.float32, levers)
    step, place = 1e-3, (0, 0)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * step
            values.append(window_nats(loss, window(), CPU).item())
            weight[place] -= sign * step
    slope = (values[0] - values[1]) / (2 * step)
    assert weight.grad[place].item() == pytest.approx(slope, rel=0.05), name


def test_bfloat16_recomputes_what_it_computed(base, tmp_path):
    narrow = copy.deepcopy(base)
    for parameter in narrow.parameters():
        parameter.data = parameter.data.bfloat16()
    model = trained(narrow, dtype=torch.bfloat16)
    results = [gradients(model, lv, tmp_path, window(), torch.bfloat16) for lv in EXACT]
    for nats, found in results[1:]:
        assert nats == results[0][0]
        assert torch.equal(found, results[0][1])


@pytest.mark.parametrize(("checkpointing", "passes"), [("attention", 1), ("full", 2)])
def test_attention_is_computed_as_often_as_promised(
    base, checkpointing, passes, tmp_path, monkeypatch
):
    """Once a document and layer when it is kept, twice when it is not."""
    calls = []
    if checkpointing == "attention":
        real = CpuKernel.forward
        monkeypatch.setattr(CpuKernel, "forward", lambda *a: calls.append(1) or real(*a))
    else:
        real = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            "giraffe_cli.model.attention.functional.scaled_dot_product_attention",
            lambda *a, **k: calls.append(1) or real(*a, **k),
        )
    gradients(trained(base), Levers(checkpointing), tmp_path, window())
    assert len(calls) == passes * 2 * len(LENGTHS)  # two layers


def test_measuring_without_gradients_goes_tile_by_tile_too(base):
    loss = WindowLoss(trained(base), torch.float32, Levers(mlp_tile=7))
    whole = WindowLoss(loss.model, torch.float32, Levers("none"))
    widest = []
    mlp = loss.model.get_base_model().model.layers[0].mlp
    hook = mlp.register_forward_hook(lambda m, args, out: widest.append(out.shape[1]))
    with torch.no_grad():
        ours = window_nats(loss, window(), CPU)
        hook.remove()
        assert ours.item() == pytest.approx(window_nats(whole, window(), CPU).item(), rel=1e-6)
    assert max(widest) == 7


# ── which tokens see which ───────────────────────────────────────────────────────────────────────


def losses_after(base, change, what: Window, levers=EXACT[1]):
    """Nats of the last document's targets, before and after `change` of the first token."""
    model = trained(base).eval()
    found = []
    for delta in (0, change):
        ids = what.input_ids.clone()
        ids[0, 0] = (ids[0, 0] + delta) % 384
        labels = what.labels.clone()
        labels[: -what.seq_lengths[-1] if len(what.seq_lengths) > 1 else 12] = -100
        with torch.no_grad():
            loss = WindowLoss(model, torch.float32, levers)
            found.append(loss(ids, labels, what.position_ids, what.seq_lengths).item())
    return found


@pytest.mark.parametrize("positions", ["plain", "pose", "randomised"])
def test_a_document_never_feels_another(base, positions):
    before, after = losses_after(base, 7, window(positions))
    assert before == after


@pytest.mark.parametrize("positions", ["plain", "pose", "randomised"])
def test_a_document_with_jumping_positions_is_one(base, positions):
    """transformers takes a jump of positions for a new document; here only cu_seqlens count."""
    before, after = losses_after(base, 7, window(positions, (24,)))
    assert before != after


def test_documents_see_each_other_when_asked_to():
    class Rows:
        def __len__(self):
            return 1

        def row(self, index):
            ids = np.arange(5, dtype=np.int32)
            return Row(ids, np.array([3, 2], dtype=np.int32), ["a", "b"])

    streams = {
        across: WindowStream(Rows(), make_positions("plain", {}), 8, 8, 0, 1, across)
        for across in (False, True)
    }
    apart, together = (streams[across].build(0) for across in (False, True))
    assert apart.seq_lengths == (3, 2)
    assert apart.labels.tolist() == [1, 2, -100, 4, -100]
    assert apart.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert together.seq_lengths == (5,)
    assert together.labels.tolist() == [1, 2, 3, 4, -100]
    assert together.position_ids.tolist() == [[0, 1, 2, 3, 4]]
    assert together.doc_ids == ("a", "b")


# ── where tensors wait ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [DeviceStore, ArenaStore, DiskStore])
def test_what_is_taken_is_what_was_put(make, tmp_path):
    store = make(tmp_path) if make is DiskStore else make()
    for _ in range(2):  # a second window after the first
        put = {
            str(n): torch.randn(3, n + 1).to(dtype)
            for n, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64))
        }
        put["transposed"] = torch.randn(4, 6).t()
        put["of attention"] = torch.randn(1, 40, 3, 2).transpose(1, 2)
        put["large"] = torch.randn(5_000_000 if make is ArenaStore else 50_000)
        for name, tensor in put.items():
            store.put(name, tensor)
        for name in reversed(put):
            taken = store.take(name)
            assert taken.dtype == put[name].dtype
            assert taken.stride() == put[name].stride()
            assert torch.equal(taken, put[name])
    with pytest.raises(KeyError):
        store.take("large")


def test_the_file_of_activations_vanishes_and_a_full_disk_is_an_error(tmp_path, monkeypatch):
    store = DiskStore(tmp_path)
    store.put("a", torch.ones(4))
    assert list(tmp_path.iterdir()) == []

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GiraffeError, match="16 bytes of activations .* No space left") as failure:
        store.put("b", torch.ones(4))
    assert "train.offload=none" in failure.value.hint
