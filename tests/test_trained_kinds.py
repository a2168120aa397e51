"""Every kind of training ends the same way: resumable, loadable by stock libraries, merged, proven.

What was trained is taken from the last checkpoint of the run, and its logits are held against those
of stock PEFT (or transformers) with the written folder, and of the merged directory.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import build_tiny_llama, prose
from safetensors.torch import load_file
from tiny_runs import ask_here

from giraffe_cli.checkpoint import inspect
from giraffe_cli.config.pack import PackConfig
from giraffe_cli.config.train import TrainConfig
from giraffe_cli.corpus.packing import pack_stage
from giraffe_cli.merge import merge_stage
from giraffe_cli.model import pissa
from giraffe_cli.model.loading import load_model, torch_dtype
from giraffe_cli.model.trainable import load_base, make_trainable
from giraffe_cli.progress import SilentReporter
from giraffe_cli.rope.base import make_table
from giraffe_cli.rundir import digest_file
from giraffe_cli.tensor_stream import stored_tensors
from giraffe_cli.train.loop import train_stage
from giraffe_cli.verify import verify_directory

TARGET, WINDOW, SEED = 512, 64, 7
WHOLE = ["embeddings", "norms"]
KINDS = {
    "lora": {"lora": {"rank": 2, "dropout": 0.1}},
    "rslora": {"lora": {"rank": 3, "use_rslora": True}},
    "dora": {"lora": {"rank": 2, "use_dora": True}},
    "pissa": {"lora": {"rank": 2, "init_lora_weights": "pissa", "dropout": 0.1}},
    "pissa-rslora": {"lora": {"rank": 3, "init_lora_weights": "pissa", "use_rslora": True}},
    "pissa-whole": {"lora": {"rank": 2, "init_lora_weights": "pissa", "also_train": WHOLE}},
    "embeddings": {"lora": {"rank": 2, "also_train": ["embeddings"]}},
    "norms": {"lora": {"rank": 2, "also_train": ["norms"]}},
    "longlora": {"lora": {"rank": 2, "targets": ["q_proj"], "also_train": WHOLE}},
    "dora-whole": {"lora": {"rank": 2, "use_dora": True, "also_train": WHOLE}},
    "full": {"method": "full"},
}
BOTH = ("embeddings", "longlora", "pissa-whole", "full")  # for the others a tie makes no difference
CASES = [(kind, tied) for kind in KINDS for tied in (True, False) if tied or kind in BOTH]


class Crash(SilentReporter):
    """The power goes after the second step is recorded, before it is saved."""

    def bar(self, description, total, unit, done=0):
        from contextlib import nullcontext

        self.done = done
        return nullcontext(self)

    def advance(self, amount=1, **fields):
        self.done += amount
        if self.done == 2:
            raise RuntimeError("power cut")


def make_material(root: Path, tied: bool, dtype: str = "float32") -> SimpleNamespace:
    base = build_tiny_llama(root / "base", tie_word_embeddings=tied)
    if dtype != "float32":
        model = load_model(base, dtype=torch_dtype(dtype))
        model.save_pretrained(base)
    checkpoint = inspect(str(base), root)
    documents = [{"id": f"doc-{n}", "text": prose(n, 1 + n % 3)} for n in range(30)]
    (root / "docs.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    pack_stage(
        [str(root / "docs.jsonl")],
        checkpoint.path,
        WINDOW,
        PackConfig(min_piece=4),
        0,
        root / "packed",
        SilentReporter(),
    )
    table = make_table("yarn", {}, checkpoint.head(TARGET))
    return SimpleNamespace(
        checkpoint=checkpoint, packed=root / "packed", table=table, dtype=dtype, tied=tied
    )


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    return {tied: make_material(tmp_path_factory.mktemp("m"), tied) for tied in (True, False)}


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """The same in bfloat16."""
    return {t: make_material(tmp_path_factory.mktemp("h"), t, "bfloat16") for t in (True, False)}


def train_config(kind: str, **changes) -> TrainConfig:
    # 3e-3: three steps change every logit by about 0.1
    values = {"steps": 3, "window": WINDOW, "warmup_steps": 0, "learning_rate": 3e-3}
    return TrainConfig.model_validate(
        {**values, "checkpoint_every": 1, "weight_decay": 0.1, **KINDS[kind], **changes}
    )


def train(material, run_dir: Path, config: TrainConfig, reporter=None, **stage) -> Path:
    return train_stage(
        material.checkpoint,
        material.table,
        material.packed,
        config,
        positions="pose",
        target_length=TARGET,
        dtype=material.dtype,
        seed=SEED,
        run_dir=run_dir,
        reporter=reporter or SilentReporter(),
        **stage,
    ).adapter_dir


def stock(material, dtype=torch.float32):
    """The base under the run's table, with transformers' own attention."""
    return load_model(material.checkpoint.path, dtype=dtype, table=material.table)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(5, 69)[None], use_cache=False).logits[0]


def trained_model(material, run_dir: Path, config: TrainConfig):
    """What the loop held after its last step."""
    base = load_base(
        material.checkpoint.path,
        config,
        dtype=torch.float32,
        table=material.table,
        attn_implementation="sdpa",
    )
    model = make_trainable(base, config, torch.float32, SEED)
    state = load_file(run_dir / "checkpoints" / "step-3" / "state.safetensors")
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, tensor in state.items():
        if name.startswith("parameter/model."):
            name = name.removeprefix("parameter/model.")
            model.get_parameter(name).data.copy_(tensor)
            names.discard(name)
    assert not names
    return model


def reloaded(material, adapter: Path):
    """The written folder through stock libraries alone."""
    model = stock(material)
    if (adapter / "trained.safetensors").is_file():
        tensors = load_file(adapter / "trained.safetensors")
        problems = model.load_state_dict(tensors, strict=False)
        assert problems.unexpected_keys == []
        assert problems.missing_keys == (["lm_head.weight"] if material.tied else [])
        return model
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft 0.21 calls what transformers 5.23 deprecates
        return PeftModel.from_pretrained(model, adapter)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: digest_file(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(materials, tmp_path_factory):
    """`runs(kind, tied)`: a run directory with its adapter and merged model, made once."""
    made = {}

    def make(kind: str, tied: bool) -> SimpleNamespace:
        if (kind, tied) not in made:
            run_dir = tmp_path_factory.mktemp(f"{kind}-{tied}")
            material, config = materials[tied], train_config(kind)
            adapter = train(material, run_dir, config)
            out = merge_stage(
                material.checkpoint, adapter, material.table, run_dir / "model", SilentReporter()
            )
            made[kind, tied] = SimpleNamespace(
                material=material, config=config, run_dir=run_dir, adapter=adapter, model=out
            )
        return made[kind, tied]

    return make


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_merged_and_reloaded_models_are_the_trained_one(runs, kind, tied):
    run = runs(kind, tied)
    trained = logits(trained_model(run.material, run.run_dir, run.config))
    assert (trained - logits(stock(run.material))).abs().max() > 0.02  # training did something
    # float32 sums in another order, on logits of about 1
    torch.testing.assert_close(
        logits(reloaded(run.material, run.adapter)), trained, atol=2e-5, rtol=0
    )
    torch.testing.assert_close(
        logits(load_model(run.model, dtype=torch.float32)), trained, atol=2e-5, rtol=0
    )
    stored = stored_tensors(run.model)
    assert stored.keys() == stored_tensors(run.material.checkpoint.path).keys()
    assert ("lm_head.weight" in stored) is not tied


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_the_proof_holds_and_names_a_tensor_that_was_not_trained_so(runs, kind, tied, tmp_path):
    run = runs(kind, tied)
    options = {
        "adapter_dir": run.adapter,
        "base": run.material.checkpoint.path,
        "table": run.material.table,
        "reporter": SilentReporter(),
        "probe": ask_here,
    }
    proof = verify_directory(run.model, **options)
    assert {name: c for name, c in proof["checks"].items() if not c["ok"]} == {}
    # the base's own weights in the place of the trained ones
    other = Path(shutil.copytree(run.model, tmp_path / "model"))
    shutil.copyfile(run.material.checkpoint.path / "model.safetensors", other / "model.safetensors")
    failed = {n for n, c in verify_directory(other, **options)["checks"].items() if not c["ok"]}
    assert {"merged_weights", "logits_short", "logits_far"} <= failed


@pytest.mark.parametrize(("kind", "tied"), CASES)
def test_a_run_that_is_cut_ends_in_the_same_bytes(runs, tmp_path, kind, tied):
    run = runs(kind, tied)
    with pytest.raises(RuntimeError, match="power cut"):
        train(run.material, tmp_path, run.config, Crash())
    assert digests(train(run.material, tmp_path, run.config)) == digests(run.adapter)


def test_where_pissa_started_is_restored_not_computed_again(runs, tmp_path, monkeypatch):
    """Another machine's singular vectors may differ; they must not move what is saved."""
    run = runs("pissa", True)
    with pytest.raises(RuntimeError, match="power cut"):
        train(run.material, tmp_path, run.config, Crash())
    monkeypatch.setattr(pissa, "ITERATIONS", 0)
    assert digests(train(run.material, tmp_path, run.config)) == digests(run.adapter)


@pytest.mark.parametrize("kind", ["pissa", "full"])
def test_a_later_stage_goes_on_from_the_weights_of_the_first(materials, tmp_path, kind):
    """Two stages of a rate of nearly nought: the second ends where the first did."""
    material = materials[True]
    first = train(material, tmp_path / "one", train_config(kind), hands_on=True)
    still = train_config(kind, learning_rate=1e-12)
    second = train(material, tmp_path / "two", still, start_from=tmp_path / "one")
    ours, theirs = (logits(reloaded(material, folder)) for folder in (first, second))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("kind", "tied"), [("pissa", True), ("longlora", False), ("dora-whole", True), ("full", True)]
)
def test_a_bfloat16_base_trains_in_float32_and_merges_into_bfloat16(halves, tmp_path, kind, tied):
    material, config = halves[tied], train_config(kind)
    adapter = train(material, tmp_path, config)
    written = load_file(next(adapter.glob("*.safetensors")))
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    out = merge_stage(
        material.checkpoint, adapter, material.table, tmp_path / "model", SilentReporter()
    )
    proof = verify_directory(
        out,
        adapter_dir=adapter,
        base=material.checkpoint.path,
        table=material.table,
        reporter=SilentReporter(),
        probe=ask_here,
    )
    assert {name: c for name, c in proof["checks"].items() if not c["ok"]} == {}
    # each trained tensor was rounded to 8 bits once: about 1e-2 on logits of about 1
    trained = logits(trained_model(material, tmp_path, config))
    found = logits(load_model(out, dtype=torch.float32))
    torch.testing.assert_close(found, trained, atol=2e-2, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"windows_per_step": 2}, {"sequence_parallel": 2}])
@pytest.mark.parametrize("kind", ["pissa-whole", "longlora", "full"])
def test_two_processes_train_every_kind_as_one_does(materials, tmp_path, kind, layout):
    """Sharing windows, or the tokens of each window."""
    alone = {name: value for name, value in layout.items() if name == "windows_per_step"}
    train(materials[True], tmp_path / "one", train_config(kind, **alone))
    train(materials[True], tmp_path / "two", train_config(kind, processes=2, **layout))
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    )
    for ours, theirs in zip(one, two, strict=True):
        # sums over processes are taken in another order
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
