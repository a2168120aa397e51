"""What the probe answered, held against the files and the table: the checks that need the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giraffe_cli.rope.base import RopeTable
from giraffe_cli.rope.readings import TOLERANCE, read_as_transformers_5, table_tolerance
from giraffe_cli.rundir import MANIFEST, is_as_written, read_json
from giraffe_cli.tensor_stream import stored_tensors
from giraffe_cli.verify_files import Check, check, check_tokenizer, listed
from giraffe_cli.verify_tables import claim_of, compare_tables
from giraffe_cli.weights import EMBEDDINGS, HEAD, STORED_TABLE, is_plain_name

MAX_LOGIT_DIFFERENCE = 1e-4
"""float32: the merge reorders sums, nothing else."""
MAX_KL, MIN_TOP1 = 4e-3, 0.97
"""16 bits: the merge rounds the weights once more than the adapter model does; KL in nats, of the
probe's random tokens. calf's right merges are 0.7e-3 to 1.6e-3 away, with 0.9 of the update
3.2e-2; on text 6e-5 and 2.6e-3. Of 256 positions a right one had 3 near ties fall the other way."""
MAX_STEPS, MAX_STEPS_FLOAT32 = 0.51, 8.0
"""One rounding is half a step of a 16-bit dtype; float32 sums of rank terms lose a few steps."""
NEEDED = (".json", ".jinja")
"""How the names of the files end that loaders read beside the weights."""
STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def judge(
    answer: Mapping[str, Any],
    folder: Path,
    digests: Mapping[str, str],
    config: Mapping[str, Any],
    table: RopeTable | None,
    *,
    asked: bool,
) -> dict[str, Check]:
    """The checks that need the loaded model; `asked`: an adapter was given to compare with."""
    loaded = answer["loaded"]
    if "error" in loaded:
        return {"loading": check(False, loaded["error"], "loads in stock transformers")}
    checks = {
        "loading": check(
            not loaded["problems"],
            "; ".join(f"{k}: {listed(v)}" for k, v in loaded["problems"].items()) or "no complaint",
            "loads in stock transformers",
        ),
        **check_tokenizer(folder, answer["tokenizer"], config, table),
    }
    if digests:
        checks["weights"] = check_weights(answer["weights"], folder, digests)
    checks |= check_table(answer["table"], config, table)
    checks |= check_finite(answer)
    if asked:
        checks |= check_logits(answer.get("comparison", {}), loaded["dtype"])
    return checks


def _same_digests(found: Mapping[str, str], expected: Mapping[str, str]) -> Check:
    """Names every tensor that is absent, added or different, the first with both digests."""
    wrong = [
        f"{name} {(found.get(name) or 'absent')[:12]} against {(expected.get(name) or 'none')[:12]}"
        for name in sorted({*found, *expected})
        if found.get(name) != expected.get(name)
    ]
    return check(
        not wrong,
        listed(wrong, 2) or f"{len(expected)} tensors bit-equal",
        "every tensor bit-equal",
    )


def check_weights(loaded: Mapping[str, Any], folder: Path, digests: Mapping[str, str]) -> Check:
    """Loaded against stored, bit for bit, and rounded where files hold several float types, of
    which a loader chooses one; a head tied to the embeddings is no extra, and stored
    rotary tables, which transformers ignores, are `stored_inv_freq`'s business."""
    if "error" in loaded:
        return check(False, loaded["error"], "every tensor bit-equal")
    stored = {
        name: STORED_DTYPES.get(tensor.dtype)
        for name, tensor in stored_tensors(folder).items()
        if not name.endswith(STORED_TABLE)
    }
    others = {n for n, entry in loaded.items() if stored.get(n, entry["dtype"]) != entry["dtype"]}
    for name in sorted(others):
        dtype = loaded[name]["dtype"]
        if dtype not in stored.values():
            return check(
                False,
                f"{name} loads as {dtype}",
                f"{stored[name]}, as stored",
                f'write "dtype": "{stored[name]}" into config.json, and "torch_dtype" likewise '
                "where it has one",
            )
    if others:
        from giraffe_cli.tensor_dtypes import digests_in

        digests = {**digests, **digests_in(folder, {n: loaded[n]["dtype"] for n in others})}
    found = {name: entry["sha256"] for name, entry in loaded.items()}
    if HEAD not in digests and found.get(HEAD) == found.get(EMBEDDINGS):
        found.pop(HEAD, None)
    loadable = {name: sha for name, sha in digests.items() if not name.endswith(STORED_TABLE)}
    return _same_digests(found, loadable)


def check_table(
    loaded: Mapping[str, Any], config: Mapping[str, Any], table: RopeTable | None
) -> dict[str, Check]:
    """`inv_freq` and attention factor in force at the target against what was trained."""
    at_load = loaded["at_load"]
    at_target = loaded.get("at_target", at_load)
    for entry in (at_load, at_target):
        if "error" in entry:
            return {"inv_freq": check(False, entry["error"], "a rotary table")}
    checks = {
        "inv_freq_dtype": check(at_target["dtype"] == "float32", at_target["dtype"], "float32"),
        "one_table": check(
            at_load == at_target,
            "constant" if at_load == at_target else "changes between position 0 and the target",
            "constant: a KV cache holds rotated keys",
        ),
    }
    claim = (np.array(table.inv_freq), table.attention_factor) if table else claim_of(config)
    if claim is None:
        return checks
    inv_freq, attention_factor = claim
    factor = at_target["attention_factor"]
    return {
        **checks,
        "inv_freq": compare_tables(
            np.array(at_target["inv_freq"]),
            np.array(inv_freq),
            table_tolerance(read_as_transformers_5(config)),
        ),
        "attention_factor": check(
            math.isclose(factor, attention_factor, rel_tol=TOLERANCE),
            factor,
            attention_factor,
        ),
    }


def check_finite(answer: Mapping[str, Any]) -> dict[str, Check]:
    """Logits without NaN or infinities, in every window that was run."""
    expected = "finite logits"
    logits = answer.get("logits", {"error": "not computed"})
    if "error" in logits:
        return {"finite_logits": check(False, logits["error"], expected)}
    if "full" in answer:
        return {"finite_logits": check(False, f"full: {answer['full']['error']}", expected)}
    found = logits["finite"]
    bad = [name for name, finite in found.items() if not finite]
    words = f"not finite in {listed(bad)}" if bad else f"finite in {', '.join(found)}"
    return {"finite_logits": check(not bad, words, expected)}


def check_logits(comparison: Mapping[str, Any], dtype: str) -> dict[str, Check]:
    """Merged against adapter logits; the bounds depend on the dtype the weights are stored in."""
    if "error" in comparison or not comparison:
        reason = comparison.get("error", "not computed")
        return {"logits": check(False, reason, "the adapter's logits")}
    windows = comparison["windows"].items()
    return {
        "merged_weights": _check_merged(comparison["weights"], dtype),
        **{f"logits_{name}": _check_window(entry, dtype) for name, entry in windows},
    }


def _check_merged(entry: Mapping[str, Any], dtype: str) -> Check:
    """Each merged tensor is base + update, rounded once; every other is the trained tensor, or
    the base's own."""
    limit = MAX_STEPS_FLOAT32 if dtype == "float32" else MAX_STEPS
    expected = f"base + update within {limit:g} steps of {dtype}, all else as trained or as it was"
    if entry["missing"] or entry["changed"]:
        parts = {"not stored": entry["missing"], "differ from what they were": entry["changed"]}
        words = "; ".join(f"{key}: {listed(names)}" for key, names in parts.items() if names)
        return check(False, words, expected)
    found = f"{entry['equal']} tensors equal"
    if entry["worst"]:
        found = f"{entry['worst']} is {entry['steps']:.3g} steps away; {found}"
    return check(entry["steps"] <= limit, found, expected)


def _check_window(entry: Mapping[str, float], dtype: str) -> Check:
    difference, kl = entry["max_abs_difference"], entry["mean_kl"]
    top1 = entry["top1_agreement"]
    if dtype == "float32":
        # written so that NaN fails
        ok = difference <= MAX_LOGIT_DIFFERENCE
        return check(
            ok, f"largest difference {difference:.2e}", f"at most {MAX_LOGIT_DIFFERENCE:g}"
        )
    # Near ties may fall the other way, one in any window; the KL bounds the rest.
    least = min(MIN_TOP1, 1 - 1 / entry["positions"])
    ok = kl <= MAX_KL and top1 >= least
    found = f"KL {kl:.2e} nats, top-1 {top1:.2%}"
    return check(ok, found, f"KL at most {MAX_KL:g}, top-1 at least {least:.2%}")


def check_against_manifest(folder: Path, digests: Mapping[str, str]) -> dict[str, Check]:
    """Weights and settings are what the merge wrote; nothing to say without its manifest."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    written = manifest.get("tensors") if isinstance(manifest, dict) else None
    if not isinstance(written, dict) or not all(isinstance(d, str) for d in written.values()):
        return {}  # somebody else's file of that name
    checks = {"tensors_as_written": _same_digests(digests, written)}
    files = manifest.get("files")
    if isinstance(files, dict) and all(_is_entry(name, entry) for name, entry in files.items()):
        checks["files_as_written"] = _same_files(folder, files)
    return checks


def _is_entry(name: str, entry: Any) -> bool:
    """A file of the folder with its size and digest, as our manifests name it."""
    return is_plain_name(name) and isinstance(entry, dict) and {"bytes", "sha256"} <= {*entry}


def _same_files(folder: Path, files: Mapping[str, Any]) -> Check:
    """Every file beside the weights, whose tensors are compared one by one. Licences, and files
    that only older libraries read, may be left out: downloads take what a loader needs."""
    wrong = []
    for name, entry in sorted(files.items()):
        is_there = (folder / name).is_file()
        if name.endswith(".safetensors") or (not is_there and not name.endswith(NEEDED)):
            continue
        if not is_as_written(folder / name, entry):
            wrong.append(f"{name} is {'altered' if is_there else 'gone'}")
    return check(
        not wrong,
        listed(wrong) or f"{len(files)} files",
        "every file as giraffe wrote it",
        f"write the model again; if the change is meant, remove {MANIFEST} from the folder",
    )
