"""Bytes that the disk changed: truncated, filled with zeros, one bit flipped.

What giraffe wrote must be found out: refused, or made again to the same result. What others wrote
(a base, a corpus, a config) may be read as something else where no digest exists to tell; such a
case is a `limit`, and must not crash.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from scripts.campaign import material as parts
from scripts.campaign.cases import Case, Verdict, judged, refusal
from scripts.campaign.commands import Ended, call, run
from scripts.campaign.results import difference, result_of

KINDS = ("truncated", "zeroed", "flipped")
EACH = 22
"""In-process cases of each kind for each of giraffe's own files."""
OWN = {
    "packed": "manifest.json rows-00000.parquet stats.json held_out.jsonl.gz",
    "run": "run.yaml rope.json plan.json training.json verify.json report.json eval/results.json",
    "run/adapter": "manifest.json adapter_model.safetensors adapter_config.json rope.json",
    "run/model": "manifest.json model.safetensors config.json tokenizer.json rope.json",
    "run/checkpoints/step-3": "manifest.json state.safetensors state.json",
    "scores/cache": "*-nll.jsonl",
}
FOREIGN = {
    "base": "config.json model.safetensors tokenizer.json tokenizer_config.json",
    ".": "docs.jsonl docs.parquet docs.arrow config.yaml base.gguf",
}
DRY = "extend --model base --data docs.jsonl --target-len 256 --window 64 --rope yarn --dry-run"
WITH_PACKED = "extend --model base --data packed --target-len 256 --window 64 --rope yarn --steps 1"
COMMANDS: dict[str, tuple[str, str, str]] = {
    # name: (what is damaged, command, what is compared)
    "train-on-packed": ("packed", f"{WITH_PACKED} --no-eval --out out", "out"),
    "pack-again": ("packed", " ".join([*parts.PACK[:-1], "packed"]), "packed"),
    "merge": ("run run/adapter", "merge run --out out", "out"),
    "export-adapter": ("run run/adapter", "export run --to adapter --out out", "out"),
    "export": ("run/model", "export run --to gguf --out out.gguf", "out.gguf"),
    "eval": ("run/model", " ".join(parts.EVAL), "out/results.json"),
    "generate": (
        "run/model",
        "generate run --prompt-file texts/doc-0.md --max-new-tokens 4",
        "stdout",
    ),
    "resume": ("run run/checkpoints/step-3 run/adapter", " ".join(parts.EXTEND), "run"),
    "report": ("run", "report run", "stdout"),
    "score-again": (
        "scores/cache",
        "eval run --data docs.jsonl --tasks nll --lengths 128 --documents 2 --set nll.targets=32"
        " --out scores",
        "scores/results.json",
    ),
    "verify-base": ("base", "verify base", ""),
    "plan-base": ("base", DRY, ""),
    "pack-jsonl": (".", " ".join(parts.PACK), "out"),
    "pack-parquet": (".", " ".join(parts.PACK).replace("docs.jsonl", "docs.parquet"), "out"),
    "pack-arrow": (".", " ".join(parts.PACK).replace("docs.jsonl", "docs.arrow"), "out"),
    "config": (".", "extend --config config.yaml --dry-run", ""),
    "gguf": (".", "rope show yarn --model base.gguf --target-len 256", "stdout"),
}
READS = {
    "pack-jsonl": "docs.jsonl",
    "pack-parquet": "docs.parquet",
    "pack-arrow": "docs.arrow",
    "config": "config.yaml",
    "gguf": "base.gguf",
    "report": "report.json",
    "resume": "run.yaml rope.json training.json verify.json plan.json manifest.json"
    " adapter_model.safetensors state.safetensors state.json",
}
BASES = (
    "base docs.jsonl docs.parquet docs.arrow config.yaml base.gguf packed run scores texts"
).split()


def cases(material: Path, work: Path, share: float, seed: int) -> list[Case]:
    """In this process or a bare child, then through commands."""
    return [*_by_functions(material, share, seed), *_by_commands(material, work, share, seed)]


def damage(path: Path, kind: str, draw: random.Random) -> str:
    """Change the file; what was done."""
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        kept = draw.choice([0, 1, len(data) - 1, draw.randrange(len(data))])
        path.write_bytes(data[:kept])
        return f"{kept} of {len(data)} bytes"
    if kind == "zeroed":
        start = draw.choice([0, draw.randrange(len(data))])
        length = draw.choice([1, 16, 512, 4096, len(data)])
        if not any(data[start : start + length]):
            start = next(i for i, byte in enumerate(data) if byte)
        piece = len(data[start : start + length])
        data[start : start + length] = bytes(piece)
    else:
        near = draw.choice([512, len(data), len(data)])
        start, bit = draw.randrange(min(near, len(data))), draw.randrange(8)
        data[start] ^= 1 << bit
    path.write_bytes(data)
    return f"byte {start} of {len(data)}"


def files(material: Path, listed: dict[str, str]) -> list[str]:
    """`packed/manifest.json` and so on."""
    found = []
    for folder, names in listed.items():
        for name in names.split():
            matching = sorted((material / folder).glob(name))
            assert matching, (folder, name)
            found.append(matching[0].relative_to(material).as_posix())
    return found


# ── in this process ──────────────────────────────────────────────────────────────────────────


def _by_functions(material: Path, share: float, seed: int) -> list[Case]:
    each = max(1, round(EACH * share))
    found = []
    for name in [*files(material, OWN), *files(material, FOREIGN)]:
        own = name in files(material, OWN)
        for kind in KINDS:
            for number in range(each):
                key = f"corruption/functions/{name}/{kind}/{number}"
                work = partial(_read_damaged, material, name, kind, f"{seed}{key}", own)
                found.append(Case(key, work))
    return found


def _read_damaged(
    material: Path, name: str, kind: str, seed: str, own: bool, folder: Path
) -> Verdict:
    """Open what is damaged the way commands do."""
    top = name.split("/")[0]
    parts.lay_out(material, folder, top, *(["base"] if top != "base" else []))
    read = reader_of(name)
    expected = undisturbed(material, name)
    done = damage(folder / name, kind, random.Random(seed))
    facts = {"by_functions": 1}
    if own:
        from giraffe_cli.errors import GiraffeError

        try:
            found = read(folder)
        except GiraffeError as error:
            return Verdict("refused", error.message[:200], facts)
        return _compared(found, expected, own, done, facts)
    ended = call(lambda: print(read(folder)), folder)
    if ended.code:
        problem = refusal(ended)
        return Verdict("wrong" if problem else "refused", f"{done}: {problem}", facts)
    return _compared(ended.stdout.strip(), expected, own, done, facts)


def _compared(found: str, expected: str, own: bool, done: str, facts: dict[str, Any]) -> Verdict:
    if found == expected:
        return Verdict("same", done, facts)
    if found == "again":
        return Verdict("resumed", done, facts)
    return Verdict("wrong" if own else "limit", f"{done}: read as something else", facts)


@cache
def undisturbed(material: Path, name: str) -> str:
    """What reading gives without damage."""
    return reader_of(name)(material)


def reader_of(name: str) -> Callable[[Path], str]:
    """The function that opens this file for a command; a digest of all it gives."""
    if name.startswith("packed/"):
        return _packed
    if name.startswith("run/adapter"):
        return _adapter
    if name.startswith("run/model"):
        return lambda folder: _model(folder / "run/model")
    if name.startswith("run/checkpoints"):
        return _checkpoint
    if name.startswith("scores/cache"):
        return _cache
    if name.startswith("run/"):
        return partial(_record, name=name)
    if name.startswith("base/"):
        return lambda folder: _model(folder / "base")
    return {
        "docs.jsonl": partial(_corpus, name="docs.jsonl"),
        "docs.parquet": partial(_corpus, name="docs.parquet"),
        "docs.arrow": partial(_corpus, name="docs.arrow"),
        "config.yaml": _config,
        "base.gguf": _gguf,
    }[name]


def _digest(*values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _packed(folder: Path) -> str:
    from giraffe_cli.corpus.store import held_out, open_packed

    rows = open_packed(folder / "packed")
    read = [
        (r.input_ids.tolist(), r.seq_lengths.tolist(), r.doc_ids)
        for r in map(rows.row, range(len(rows)))
    ]
    return _digest(rows.digest, rows.window, rows.stats, read, held_out(folder / "packed"))


def _adapter(folder: Path) -> str:
    from giraffe_cli.adapter import adapter_digest, read_adapter

    adapter = folder / "run/adapter"
    changes = read_adapter(adapter)
    loaded = [(name, repr(change.load())) for name, change in sorted(changes.items())]
    table = (adapter / "rope.json").read_bytes() if (adapter / "rope.json").exists() else b""
    return _digest(adapter_digest(adapter), loaded, table)


def _model(path: Path) -> str:
    from giraffe_cli.checkpoint import inspect
    from giraffe_cli.model.loading import load_tokenizer

    opened = inspect(str(path), path)
    return _digest(
        {**opened.to_json(), "path": "", "source": ""},
        load_tokenizer(path)("the grass is green")["input_ids"],
    )


def _checkpoint(folder: Path) -> str:
    """The newest checkpoint that holds; an earlier one means that steps are taken again."""
    from giraffe_cli.rundir import read_json, stage_holds
    from giraffe_cli.train.checkpoints import saved_steps
    from giraffe_cli.train.state_file import read_tensors

    steps = folder / "run/checkpoints"
    identity = read_json(steps / "step-2" / "manifest.json")["inputs"]
    for number in saved_steps(steps):
        path = steps / f"step-{number}"
        if stage_holds(path, identity):
            if number < 3:
                return "again"
            tensors = [
                (name, t.numpy().tobytes()) for name, t in read_tensors(path / "state.safetensors")
            ]
            return _digest(read_json(path / "state.json"), tensors)
    return "again"


def _cache(folder: Path) -> str:
    """A damaged outcome counts as not there and is read again; the others stay what they were."""
    from giraffe_cli.evals.cache import OutcomeCache
    from giraffe_cli.evals.subject import Subject

    [path] = (folder / "scores/cache").glob("*-nll.jsonl")
    digest, dtype, _ = path.name.split("-", 2)
    known = OutcomeCache(path.parent, Subject("x", path, digest, dtype), "nll").known
    whole = _known(folder)
    shown = {key: repr(outcome) for key, outcome in known.items()}
    if whole is None or shown == whole:
        return _digest(sorted(shown.items()))
    return "again" if shown.items() <= whole.items() else "another outcome"


WHOLE: dict[str, dict[str, str]] = {}


def _known(folder: Path) -> dict[str, str] | None:
    """The outcomes before the damage; the first reading is that of the material."""
    from giraffe_cli.evals.cache import OutcomeCache
    from giraffe_cli.evals.subject import Subject

    if "known" not in WHOLE and folder.name == "material":
        [path] = (folder / "scores/cache").glob("*-nll.jsonl")
        digest, dtype, _ = path.name.split("-", 2)
        known = OutcomeCache(path.parent, Subject("x", path, digest, dtype), "nll").known
        WHOLE["known"] = {key: repr(outcome) for key, outcome in known.items()}
    return WHOLE.get("known")


def _record(folder: Path, name: str) -> str:
    """Files of a run that are read alone: by a resumed run, by `merge`, by `report`."""
    from giraffe_cli.config.files import read_sealed_yaml
    from giraffe_cli.report.scored import read_results
    from giraffe_cli.rundir import read_json, read_kept

    path = folder / name
    if path.name == "run.yaml":
        return _digest(read_sealed_yaml(path))
    if path.name in ("training.json", "verify.json", "plan.json"):
        kept = read_kept(path)
        return "again" if kept is None else _digest(kept)
    return _digest((read_results if path.name == "results.json" else read_json)(path))


def _corpus(folder: Path, name: str) -> str:
    from giraffe_cli.config.pack import PackConfig
    from giraffe_cli.corpus.base import BadRecords
    from giraffe_cli.corpus.sources import read_source

    return _digest(
        [(d.id, d.text) for d in read_source(str(folder / name), BadRecords(), PackConfig())]
    )


def _config(folder: Path) -> str:
    from giraffe_cli.config.building import build
    from giraffe_cli.config.files import read_yaml

    return _digest(build(read_yaml(folder / "config.yaml")).model_dump(mode="json"))


def _gguf(folder: Path) -> str:
    from giraffe_cli.checkpoint import inspect

    opened = inspect(str(folder / "base.gguf"), folder / "work")
    return _digest({**opened.to_json(), "path": "", "source": ""})


# ── through commands ─────────────────────────────────────────────────────────────────────────


def _by_commands(material: Path, work: Path, share: float, seed: int) -> list[Case]:
    found = []
    for command, (damaged, _, _) in COMMANDS.items():
        listed = {**OWN, **FOREIGN}
        names = [n for top in damaged.split() for n in files(material, {top: listed[top]})]
        wanted = READS.get(command)
        names = [n for n in names if wanted is None or Path(n).name in wanted.split()]
        for name in names:
            for kind in KINDS:
                key = f"corruption/commands/{command}/{name}/{kind}"
                if share >= 1 or random.Random(key).random() < share:
                    work_on = partial(
                        _run_damaged, material, work, command, name, kind, f"{seed}{key}"
                    )
                    found.append(Case(key, work_on))
    return found


def _prepare(material: Path, folder: Path, command: str) -> list[str]:
    parts.lay_out(material, folder, *BASES)
    if command == "resume":  # with its last step to take again
        for name in ("adapter", "model"):
            if (folder / "run" / name).exists() and name != "adapter":
                shutil.rmtree(folder / "run" / name)
    return COMMANDS[command][1].split()


def _run_damaged(
    material: Path, work: Path, command: str, name: str, kind: str, seed: str, folder: Path
) -> Verdict:
    words = _prepare(material, folder, command)
    done = damage(folder / name, kind, random.Random(seed))
    if command == "resume" and name.startswith("run/checkpoints"):
        shutil.rmtree(folder / "run/adapter")
    own = name in files(material, OWN)
    expected = reference(material, work, command)
    ended = run(words, folder)
    verdict = judged(ended, lambda: difference(expected, _result(command, folder, ended)))
    facts = {"by_commands": 1}
    if verdict.kind == "wrong" and verdict.detail.startswith("silent") and not own:
        return Verdict("limit", f"{done}: {verdict.detail}", facts)
    return Verdict(verdict.kind, f"{done}: {verdict.detail}", facts)


@cache
def reference(material: Path, work: Path, command: str) -> dict[str, str]:
    """The result of the command without any damage.

    Raises:
        RuntimeError: it fails by itself.
    """
    folder = work / "reference" / command
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    words = _prepare(material, folder, command)
    ended = run(words, folder)
    if ended.code:
        raise RuntimeError(f"{words}: {ended.stderr}")
    return _result(command, folder, ended)


def _result(command: str, folder: Path, ended: Ended) -> dict[str, str]:
    """What is compared, as `COMMANDS` says: files, or what was printed."""
    compared = COMMANDS[command][2]
    if compared == "stdout":
        return {"stdout": ended.stdout}
    return result_of(folder, *compared.split())
