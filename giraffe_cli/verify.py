"""Proof of portability: what stock libraries make of a directory equals what was written.

The files are read here; the model is loaded by `verify_probe.py`, a program started with
`python -I` that never sees this package. Held against each other: every tensor, the rotary table,
and, given the adapter and its base, the logits of 64 tokens at position 0 and of 512 tokens at the
last positions of the target. Cost: the model once (twice with an adapter) in CPU memory, a few
hundred tokens of computation; `full` adds a pass over the whole target.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from giraffe_cli.errors import GiraffeError, InvalidInput
from giraffe_cli.progress import Reporter
from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.malformed import is_length, is_number
from giraffe_cli.rope.runtimes import RUNTIMES, runtimes
from giraffe_cli.rundir import read_json
from giraffe_cli.tensor_stream import tensor_digests
from giraffe_cli.verify_config import (
    check_architecture,
    check_config,
    is_llama,
    not_loadable,
    read_config,
)
from giraffe_cli.verify_files import (
    Check,
    check,
    check_base_config,
    check_base_vocabulary,
    check_companions,
    check_tensor_shapes,
    check_tied_embeddings,
    check_weight_files,
)
from giraffe_cli.verify_judge import check_against_manifest, judge
from giraffe_cli.verify_scaling import check_scaling, tokenizer_limit
from giraffe_cli.verify_tables import check_tables_in_files

Probe = Callable[[Mapping[str, Any]], dict[str, Any]]
SEED = 20240229
SHORT_WINDOW, FAR_WINDOW = 64, 512


def verify_directory(
    folder: Path,
    *,
    adapter_dir: Path | None = None,
    base: Path | None = None,
    table: RopeTable | None = None,
    full: bool = False,
    reporter: Reporter,
    probe: Probe | None = None,
) -> dict[str, Any]:
    """`{"ok", "checks": {name: {"ok", "found", "expected"}}, "runtimes": {name: sentence}}`; a
    failed check may have a `hint`.

    `table` is what was trained; without it the directory's own `rope.json` counts, without that the
    config's claim. `adapter_dir` together with `base` compares logits; `base` alone also shows what
    the directory lost of its scaling. The model is loaded only when the files are worth it.

    Raises:
        InvalidInput: no model directory, or a `rope.json` or `config.json` that cannot be read.
    """
    config = read_config(folder)
    if not is_llama(config):
        return proof_of_another_architecture(folder, config)
    written = written_table(folder)
    table = table or written
    checks = check_files(folder, config, table, written, base)
    limit = tokenizer_limit(folder)
    obstacle = not_loadable(config, checks)
    if obstacle:
        found = f"not tried: {obstacle} comes first"
        checks["loading"] = check(False, found, "loads in stock transformers")
    else:
        reporter.info(f"reading the weights of {folder}")
        digests = tensor_digests(folder)
        checks |= check_against_manifest(folder, digests)
        checks["tied_embeddings"] = check_tied_embeddings(digests, config)
        reporter.info(f"loading {folder} with stock transformers, in a process of its own")
        ask = probe or ask_probe
        answer = ask(build_request(folder, adapter_dir, base, table, config, full))
        checks |= judge(answer, folder, digests, config, table, asked=bool(adapter_dir))
        limit = answer.get("tokenizer", {}).get("model_max_length", limit)
    return {
        "ok": all(entry["ok"] for entry in checks.values()),
        "checks": checks,
        "runtimes": runtimes(config, limit),
    }


def check_files(
    folder: Path,
    config: Mapping[str, Any],
    table: RopeTable | None,
    written: RopeTable | None,
    base: Path | None,
) -> dict[str, Check]:
    """Everything that is known before a weight is read: the cheap checks, the config's first."""
    checks = {**check_config(folder, config, table), **check_weight_files(folder)}
    checks |= check_companions(folder)
    if table and written:
        checks["rope_json"] = check(
            written.to_json() == table.to_json(), describe(written), describe(table)
        )
    usable, of_base = checks["rope_fields"]["ok"], read_config(base) if base else None
    if usable and not table and is_length(config.get("max_position_embeddings")):
        checks |= check_scaling(folder, config, of_base)
    if of_base:
        checks |= check_base_config(config, of_base, folder)
    if checks["weight_files"]["ok"]:
        checks |= check_tensor_shapes(folder, config)
        if usable:
            checks |= check_tables_in_files(folder, config, written)
    return checks | (check_base_vocabulary(folder, base) if base else {})


def proof_of_another_architecture(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What can be said of a model that is no Llama: that, and of which kind its files are."""
    checks = {**check_architecture(config), **check_weight_files(folder)}
    unknown = f"not known: {checks['architecture']['found']} is no Llama"
    return {"ok": False, "checks": checks, "runtimes": dict.fromkeys(RUNTIMES, unknown)}


def written_table(folder: Path) -> RopeTable | None:
    """The directory's `rope.json`; None for a checkpoint that is not ours.

    Raises:
        InvalidInput: it cannot be read, or its table or lengths are no numbers.
    """
    path = folder / "rope.json"
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("inv_freq", []), list):
        raise InvalidInput(f"{path} holds no JSON object with a table", "write it again")
    table = RopeTable.from_json(value)
    numbers = [table.attention_factor, *table.inv_freq]
    if not all(is_number(number) and number > 0 for number in numbers):
        raise InvalidInput(f"{path} has a table that is not all numbers above 0", "write it again")
    if not is_length(table.target_length) or not isinstance(table.rope_parameters, dict):
        raise InvalidInput(f"{path} has no target_length or rope_parameters", "write it again")
    return table


def describe(table: RopeTable) -> str:
    """`yarn to 16384, attention factor 1.27726`."""
    return f"{table.strategy} to {table.target_length}, attention factor {table.attention_factor:g}"


# ── the other process ────────────────────────────────────────────────────────────────────────


def build_request(
    folder: Path,
    adapter_dir: Path | None,
    base: Path | None,
    table: RopeTable | None,
    config: Mapping[str, Any],
    full: bool,
) -> dict[str, Any]:
    """What `verify_probe.py` is asked; windows end at the last position of the target."""
    claimed = config.get("max_position_embeddings")
    target = table.target_length if table else claimed if isinstance(claimed, int) else FAR_WINDOW
    short, far = min(SHORT_WINDOW, target), min(FAR_WINDOW, target)
    return {
        "folder": str(folder.resolve()),
        "adapter": str(adapter_dir.resolve()) if adapter_dir else None,
        "base": str(base.resolve()) if base else None,
        "windows": [
            {"name": "short", "start": 0, "length": short},
            {"name": "far", "start": target - far, "length": far},
        ],
        "full_length": target if full else None,
        "seed": SEED,
    }


def ask_probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the probe in an empty folder, isolated; its answer, or why there is none."""
    program = Path(__file__).with_name("verify_probe.py").resolve()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run(
            [sys.executable, "-I", str(program), str(os.getpid())],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=empty,
            env=environment,
            check=False,
        )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    reason = "killed, most likely out of memory" if done.returncode == -9 else last
    return {"loaded": {"error": f"the process ended with code {done.returncode}: {reason}"}}


def raise_if_defective(folder: Path, proof: Mapping[str, Any], kind: type[GiraffeError]) -> None:
    """Raise `kind` naming every failed check with what was found and expected.

    Raises:
        GiraffeError: of the given kind.
    """
    failed = [
        f"  - {name}: found {entry['found']}; expected {entry['expected']}"
        + (f"\n    {entry['hint']}" if "hint" in entry else "")
        for name, entry in proof["checks"].items()
        if not entry["ok"]
    ]
    if failed:
        raise kind(
            f"{folder} is defective: {len(failed)} of {len(proof['checks'])} checks failed\n"
            + "\n".join(failed)
        )
