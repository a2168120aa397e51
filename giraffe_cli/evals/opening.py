"""What a name on the command line stands for: a model, or what a run trained and its base.

    ./any-llama, calf, model.gguf   itself
    runs/mine                       its model/, merged again where that is gone
    runs/mine/adapter, ./my-lora    merged into its base, in the folder of the evaluation

The base of an adapter is `--base`, else what its adapter_config.json (or trained.json) names. The
table is its rope.json's; an adapter without one was trained under its base's own RoPE.
"""

from __future__ import annotations

from pathlib import Path

from giraffe_cli.adapter import is_full
from giraffe_cli.checkpoint import Checkpoint, inspect
from giraffe_cli.errors import InvalidInput
from giraffe_cli.merge import merge_stage
from giraffe_cli.merge_checks import check_same_base
from giraffe_cli.model.full import TRAINED_CONFIG
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.install import ROPE_FILE
from giraffe_cli.run_files import adapter_of, base_of, read_run
from giraffe_cli.rundir import read_json
from giraffe_cli.weights import ADAPTER_CONFIG, holds_weights


def open_checkpoint(
    source: str,
    base: Checkpoint | None,
    work_dir: Path,
    reporter: Reporter,
    allow_pickle: bool = False,
) -> Checkpoint:
    """`source` as a model directory; what must be converted or merged goes into `work_dir`.

    Raises:
        InvalidInput: nothing usable there, or an adapter whose base is not known or not found.
        GiraffeError: an adapter that does not fit its base.
    """
    path = Path(source).expanduser()
    if (path / "run.yaml").is_file():
        return _of_run(path, work_dir, reporter)
    is_adapter = (path / ADAPTER_CONFIG).is_file() and not holds_weights(path)
    if is_adapter or is_full(path):
        of = base or inspect(_base_of(path), work_dir, allow_pickle)
        return _merged(of, path, _table_of(path), work_dir, reporter)
    return inspect(source, work_dir, allow_pickle)


def run_of(source: str) -> Path:
    """The run folder that `source` lies in or is: where its packed data would be."""
    path = Path(source).expanduser()
    return path if (path / "run.yaml").is_file() else path.parent


def _of_run(run: Path, work_dir: Path, reporter: Reporter) -> Checkpoint:
    if (run / "model" / "config.json").is_file():
        return inspect(str(run / "model"), work_dir)
    config, table = read_run(run)
    base = inspect(base_of(run, config), run, config.allow_pickle)
    adapter = adapter_of(run, config)
    if adapter is not None:
        check_same_base(adapter, base)
    return _merged(base, adapter, table, work_dir, reporter)


def _merged(
    base: Checkpoint,
    adapter: Path | None,
    table: RopeTable | None,
    work_dir: Path,
    reporter: Reporter,
) -> Checkpoint:
    return inspect(str(merge_stage(base, adapter, table, work_dir / "model", reporter)), work_dir)


def _table_of(adapter: Path) -> RopeTable | None:
    path = adapter / ROPE_FILE
    return RopeTable.from_json(read_json(path)) if path.is_file() else None


def _base_of(adapter: Path) -> str:
    """What the adapter says it was trained on.

    Raises:
        InvalidInput: nothing, or something that is not there.
    """
    full = is_full(adapter)
    name, key = (TRAINED_CONFIG, "base") if full else (ADAPTER_CONFIG, "base_model_name_or_path")
    source = read_json(adapter / name).get(key)
    if not source:
        raise InvalidInput(f"{adapter / name} names no base", "pass --base")
    return str(source)
