"""Input that means harm: code in checkpoints, configs and pickles; paths that lead out; numbers
without end; text that commands a terminal or a browser.

Whatever the exit, nothing may run, nothing be written outside the named output, no control
character reach the terminal, no markup of a document a page.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scripts.campaign import material as parts
from scripts.campaign.cases import Case, Verdict, refusal
from scripts.campaign.commands import Ended, run

MARK = "pwned"
SECRET = "b8f2-private-key"
EVIL = "\x1b[2J\x1b]0;x\x07\u009b31m\u202e<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
EXTEND = (
    "extend --model {m} --data docs.jsonl --target-len 256 --window 64 --rope yarn --steps 1"
    " --no-eval --out out"
).split()
COMMANDS = {
    "extend": EXTEND,
    "dry-run": [*EXTEND[:-2], "--dry-run"],
    "verify": "verify {m}".split(),
    "rope-show": "rope show yarn --model {m} --target-len 256".split(),
    "export": "export {m} --to gguf --out out.gguf".split(),
    "eval": "eval {m} --data docs.jsonl --tasks nll --lengths 128 --documents 2"
    " --set nll.targets=32 --out out".split(),
    "generate": "generate {m} --prompt-file prompt.txt --max-new-tokens 2".split(),
}


def cases(material: Path, work: Path, share: float, seed: int) -> list[Case]:
    """All of them; with a `share` below 1 every n-th."""
    found = [
        *_checkpoints(material),
        *_pickles(material),
        *_yaml(material),
        *_paths(material),
        *_texts(material),
        *_names(material),
    ]
    return found if share >= 1 else found[:: max(1, round(1 / (share * 10)))]


# ── what holds for every case ────────────────────────────────────────────────────────────────


def harmless(folder: Path, ended: Ended, before: set[str]) -> Verdict:
    """`same` when it ended well, `refused` when clearly so, and nothing happened beside it."""
    everything = {str(p.relative_to(folder)) for p in folder.rglob("*")}
    beside = sorted(
        n for n in everything - before if Path(n).parts[0] not in ("out", "out.gguf", "runs")
    )
    outside = [p for p in (Path("/tmp") / MARK, folder.parent / MARK) if p.exists()]
    if outside or any(MARK in Path(name).name for name in everything):
        return Verdict("wrong", "the code of a stranger ran")
    if beside:
        return Verdict("wrong", f"wrote beside its output: {beside[:3]}")
    if any(holds_secret(path) for path in (folder / "out").rglob("*")):
        return Verdict("wrong", "a file of the user's is in the output")
    if problem := pages(folder):
        return Verdict("wrong", problem)
    if ended.code == 0 and not ended.hung:
        told = refusal(Ended(1, ended.stdout, ended.stderr + "\nerror: hint:", 0))
        return Verdict("wrong", told) if told else Verdict("same")
    problem = refusal(ended)
    return Verdict("wrong", problem) if problem else Verdict("refused")


def holds_secret(path: Path) -> bool:
    """Whether a text file holds what `_linked_template` put into the user's."""
    return path.is_file() and path.stat().st_size < 10**6 and SECRET.encode() in path.read_bytes()


def pages(folder: Path) -> str:
    """What is wrong with a page that was written; empty when nothing is."""
    for path in folder.rglob("*"):
        if path.suffix not in (".html", ".md") or "texts" in path.parts or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        if any(c < " " and c not in "\n\t" or c in "\x7f\u009b\u202e" for c in text):
            return f"{path.name} holds control characters"
        if path.suffix == ".html":
            if "Content-Security-Policy" not in text:
                return f"{path.name} has no Content-Security-Policy"
            if "<script" in text or "<img src=x" in text:
                return f"{path.name} holds the markup of a document"
    return ""


def case(
    key: str, material: Path, needs: str, change: Callable[[Path], None], words: list[str]
) -> Case:
    """One command on copies of `needs` that `change` has turned hostile."""

    def attempt(folder: Path) -> Verdict:
        parts.lay_out(material, folder, *needs.split())
        (folder / "prompt.txt").write_text("the grass is green", encoding="utf-8")
        change(folder)
        before = {str(path.relative_to(folder)) for path in folder.rglob("*")}
        return harmless(folder, run(words, folder), before)

    return Case(f"hostile/{key}", attempt)


def on_model(words: list[str], model: str) -> list[str]:
    return [model if word == "{m}" else word for word in words]


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────


def _checkpoints(material: Path) -> list[Case]:
    found = []
    for name, change in _damages().items():
        for command in COMMANDS:
            words = on_model(COMMANDS[command], "base")
            found.append(case(f"{name}/{command}", material, "base docs.jsonl", change, words))
    return found


def _damages() -> dict[str, Callable[[Path], None]]:
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config = partial(edited, "config.json")
    settings = partial(edited, "tokenizer_config.json")
    numbers: dict[str, dict[str, Any]] = {
        "layers-1e9": {"num_hidden_layers": 10**9},
        "layers-5000-digits": {"num_hidden_layers": int("9" * 4000)},
        "vocabulary-2e62": {"vocab_size": 2**62},
        "window-1e30": {"max_position_embeddings": 10**30},
        "width-negative": {"hidden_size": -64},
        "theta-infinite": {"rope_theta": 1e999, "rope_parameters": None},
        "theta-nan": {"rope_theta": float("nan"), "rope_parameters": None},
        "theta-1e308": {"rope_theta": 1e308, "rope_parameters": None},
        "theta-text": {"rope_theta": "1" * 5000, "rope_parameters": None},
        "heads-float": {"num_attention_heads": 4.5},
        "head-dim-list": {"head_dim": [16]},
        "norm-text": {"rms_norm_eps": "small"},
        "norm-infinite": {"rms_norm_eps": 1e999},
        "dtype-evil": {"dtype": EVIL, "torch_dtype": EVIL},
        "architectures-evil": {"architectures": [EVIL]},
        "architectures-number": {"architectures": 7},
        "architectures-mixed": {"architectures": [1, None]},
        "type-evil": {"model_type": EVIL},
        "type-other": {"model_type": "evil", "auto_map": code},
        "activation-evil": {"hidden_act": EVIL},
        "quantised": {"quantization_config": {"quant_method": EVIL}},
    }
    scalings = {
        "linear-infinite": {"rope_type": "linear", "factor": 1e999},
        "linear-huge": {"rope_type": "linear", "factor": 1e300},
        "linear-text": {"rope_type": "linear", "factor": "x"},
        "linear-zero": {"rope_type": "linear", "factor": 0},
        "dynamic-none": {"rope_type": "dynamic", "factor": None},
        "dynamic-huge": {"rope_type": "dynamic", "factor": 1e300},
        "yarn-empty": {"rope_type": "yarn"},
        "yarn-native-text": {"rope_type": "yarn", "original_max_position_embeddings": "x"},
        "yarn-native-huge": {"rope_type": "yarn", "original_max_position_embeddings": 1e999},
        "longrope-long": {"rope_type": "longrope", "long_factor": [1.0] * 100_000, "factor": 2},
        "longrope-text": {"rope_type": "longrope", "long_factor": EVIL, "short_factor": EVIL},
        "llama3-nan": {"rope_type": "llama3", "factor": float("nan")},
        "type-list": {"rope_type": ["yarn"]},
        "type-evil": {"rope_type": EVIL},
        "list": ["yarn"],
    }
    found: dict[str, Callable[[Path], None]] = {
        "code/auto-map": lambda f: (config({"auto_map": code}, f), _code(f / "base"))[0],
        "code/tokenizer": lambda f: (
            settings({"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}, f),
            _code(f / "base"),
        )[0],
        "code/tokenizer-class": lambda f: (
            settings({"tokenizer_class": "Evil", "auto_map": code}, f),
            _code(f / "base"),
        )[0],
        "code/generation": lambda f: (
            edited("generation_config.json", {"custom_generate": "evil", "auto_map": code}, f),
            _code(f / "base"),
        )[0],
        "code/template": partial(settings, {"chat_template": "{{ ''.__class__.__mro__ }}" + EVIL}),
        "json/deep": lambda f: raw(f, "config.json", "[" * 200_000) and None,
        "json/deep-object": lambda f: raw(f, "config.json", '{"a":' * 200_000) and None,
        "json/digits": lambda f: raw(f, "config.json", '{"a": ' + "9" * 9000 + "}") and None,
        "json/list": lambda f: raw(f, "config.json", "[1, 2]") and None,
        "json/nul": lambda f: raw(f, "config.json", "\0" * 100) and None,
        "json/latin": lambda f: (f / "base/config.json").write_bytes(b'{"a": "\xe9"}') and None,
        "json/tokenizer-deep": lambda f: raw(f, "tokenizer.json", "[" * 200_000) and None,
        "json/tokenizer-list": lambda f: raw(f, "tokenizer.json", "[]") and None,
        "json/tokenizer-config-list": lambda f: raw(f, "tokenizer_config.json", "[]") and None,
        "json/tokenizer-config-deep": lambda f: (
            raw(f, "tokenizer_config.json", "[" * 99_999) and None
        ),
        "json/generation-list": lambda f: raw(f, "generation_config.json", "[]") and None,
        "json/rope-list": lambda f: raw(f, "rope.json", "[]") and None,
        "json/rope-evil": lambda f: raw(f, "rope.json", json.dumps({"strategy": EVIL})) and None,
        "json/manifest-list": lambda f: raw(f, "manifest.json", "[]") and None,
        "json/manifest-evil": lambda f: raw(f, "manifest.json", '{"files": {"../x": 7}}') and None,
        "header/names": partial(header, {EVIL: {"dtype": "F32", "shape": [1]}}),
        "header/shape": partial(header, {"x": {"dtype": "F32", "shape": [2**62, 2**62]}}),
        "header/negative": partial(header, {"x": {"dtype": "F32", "shape": [-1]}}),
        "header/dtype": partial(header, {"model.norm.weight": {"dtype": EVIL, "shape": [1]}}),
        "header/length": lambda f: (
            (f / "base/model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}" * 40)
            and None
        ),
    }
    found |= {f"number/{name}": partial(config, change) for name, change in numbers.items()}
    found |= {
        f"scaling/{name}": partial(config, {"rope_scaling": value, "rope_parameters": value})
        for name, value in scalings.items()
    }
    return found


def edited(file: str, changes: dict[str, Any], folder: Path) -> None:
    """Keys of a JSON file of the checkpoint set."""
    path = folder / "base" / file
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def raw(folder: Path, file: str, text: str) -> int:
    """A file of the checkpoint replaced."""
    return (folder / "base" / file).write_text(text, encoding="utf-8")


def header(entries: dict[str, Any], folder: Path) -> None:
    """A safetensors header with more entries, their data four bytes at the end."""
    path = folder / "base/model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    known, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    for name, entry in entries.items():
        known[name] = {**entry, "data_offsets": [len(body), len(body) + 4]}
    text = json.dumps(known).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body + bytes(4))


def _code(folder: Path) -> None:
    text = f"import pathlib\npathlib.Path('{MARK}').touch()\npathlib.Path('/tmp/{MARK}').touch()\n"
    (folder / "evil.py").write_text(text + "class Config: pass\nclass Model: pass\nclass T: pass\n")


# ── pickles ──────────────────────────────────────────────────────────────────────────────────


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARK} /tmp/{MARK}",)


def pickled(folder: Path, kind: str) -> None:
    """The weights of `base` as `pytorch_model.bin`: `good`, a `bomb`, a `zip` or a raw one."""
    import torch
    from safetensors.torch import load_file

    base = folder / "base"
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    target = base / "pytorch_model.bin"
    if kind == "good":
        torch.save(weights, target)
    elif kind == "bomb":
        torch.save({**weights, "x": _Bomb()}, target)
    elif kind == "old-bomb":
        target.write_bytes(
            pickle.dumps({**{k: v.numpy() for k, v in weights.items()}, "x": _Bomb()})
        )
    elif kind == "zip-bomb":
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", pickle.dumps(_Bomb()))
            file.writestr("../../../tmp/pwned", "x")
            file.writestr("archive/data/0", bytes(50_000_000))
        target.write_bytes(archive.getvalue())
    elif kind == "list":
        torch.save([1, 2], target)
    elif kind == "index":
        shutil.move(target, base / "x.bin") if target.exists() else None
        index = {"weight_map": {"model.norm.weight": "../../docs.jsonl"}}
        (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    elif kind == "garbage":
        target.write_bytes(os.urandom(5000))


def _pickles(material: Path) -> list[Case]:
    found = []
    for kind in ("good", "bomb", "old-bomb", "zip-bomb", "list", "index", "garbage"):
        change = partial(pickled, kind=kind)
        for command, words in COMMANDS.items():
            plain = on_model(words, "base")
            key = f"pickle/{kind}/{command}"
            found.append(case(key, material, "base docs.jsonl", change, plain))
            if command not in ("verify", "export", "rope-show"):
                allowed = [*plain, "--allow-pickle"]
                found.append(case(f"{key}-allowed", material, "base docs.jsonl", change, allowed))

    def adapter(folder: Path) -> None:
        import torch

        weights = folder / "run/adapter/adapter_model.safetensors"
        torch.save({"x": _Bomb()}, weights.with_suffix(".bin"))
        weights.unlink()
        (folder / "run/adapter/manifest.json").unlink()

    for name, words in {
        "eval": "eval run/adapter --base base --data docs.jsonl --tasks nll --out out".split(),
        "verify": "verify base --adapter run/adapter --base base".split(),
        "merge": "merge run --out out".split(),
        "export": "export run --to adapter --out out".split(),
    }.items():
        found.append(
            case(f"pickle/adapter/{name}", material, "base docs.jsonl run", adapter, words)
        )
    return found


# ── configs ──────────────────────────────────────────────────────────────────────────────────


def _yaml(material: Path) -> list[Case]:
    apply = f'!!python/object/apply:os.system ["touch {MARK} /tmp/{MARK}"]'
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
    )
    bomb = laughs.replace("\n", "\n    ")
    texts = {
        "tag": f"target_length: 256\nmodel: {apply}\n",
        "tag-new": "target_length: 256\nseed: !!python/object/new:os.system [touch pwned]\n",
        "tag-module": "target_length: !!python/module:os\n",
        "tag-own": "target_length: !evil 256\n",
        "laughs-unknown": f"target_length: 256\n{laughs}",
        "laughs-knobs": f"target_length: 256\neval:\n  knobs:\n    {bomb}\n",
        "laughs-data": "target_length: 256\n" + laughs.replace("a11:", "data:"),
        "circle": "target_length: 256\neval: &e\n  knobs: {nll: *e}\n",
        "circle-list": "target_length: 256\ndata: &d [*d]\n",
        "deep": "target_length: " + "[" * 50_000,
        "deep-flow": "target_length: 256\neval: {knobs: {nll: " + "{a: " * 3000,
        "control": f"target_length: 256\n{json.dumps(EVIL)}: 1\n",
        "control-value": f"target_length: {json.dumps(EVIL)}\n",
        "key-number": "target_length: 256\n7: 8\n",
        "key-list": "target_length: 256\n? [a, b]\n: 1\n",
        "key-none": "target_length: 256\n~: 1\ntrain: {~: 2}\n",
        "merge-key": "target_length: 256\n<<: 7\n",
        "number": f"target_length: {'9' * 6000}\n",
        "number-16": f"target_length: 256\nseed: 0x{'f' * 6000}\n",
        "infinite": "target_length: 256\ntrain: {learning_rate: .inf, steps: .nan}\n",
        "sexagesimal": "target_length: 256\nseed: 190:20:30\n",
        "date": "target_length: 2024-01-01\nmodel: 2024-01-01\n",
        "binary": "target_length: 256\nmodel: !!binary aGVsbG8=\n",
        "set": "target_length: 256\ndata: !!set {a, b}\n",
        "two": "target_length: 256\n---\ntarget_length: 512\n",
        "text": "hello",
        "empty": "",
        "nul": "target_length: 256\nmodel: \0\n",
    }
    found = []
    for name, text in texts.items():

        def change(folder: Path, text: str = text) -> None:
            (folder / "evil.yaml").write_text(text, encoding="utf-8")

        words = "extend --config evil.yaml --model base --data docs.jsonl --dry-run".split()
        found.append(case(f"yaml/{name}", material, "base docs.jsonl", change, words))
    for number, text in enumerate(
        (apply, "&a [*a]", "[" * 9000, EVIL, "9" * 6000, "!!python/name:os.system", "*a", "'")
    ):
        words = [*on_model(COMMANDS["dry-run"], "base"), "--set", f"eval.knobs.nll.anchors={text}"]
        key = f"yaml/assignment-{number}"
        found.append(case(key, material, "base docs.jsonl", lambda folder: None, words))

    def front(folder: Path) -> None:
        text = f"---\nlicense: {apply}\nlanguage: {json.dumps(EVIL)}\n---\n"
        (folder / "base/README.md").write_text(text)

    def front_bomb(folder: Path) -> None:
        text = f"---\n{laughs}license: *a11\nlanguage: {json.dumps(EVIL)}\n---\n"
        (folder / "base/README.md").write_text(text)

    words = on_model(EXTEND, "base")
    found.append(case("yaml/card", material, "base docs.jsonl", front, words))
    found.append(case("yaml/card-bomb", material, "base docs.jsonl", front_bomb, words))
    return found


# ── paths ────────────────────────────────────────────────────────────────────────────────────


def _paths(material: Path) -> list[Case]:
    found = []
    secret = "../secret/model.safetensors"
    for name, target in {
        "up": secret,
        "absolute": "/etc/passwd",
        "nul": "a\0b",
        "number": 7,
        "dots": "..",
        "empty": "",
    }.items():

        def index(folder: Path, target: Any = target) -> None:
            (folder / "secret").mkdir()
            shutil.move(folder / "base/model.safetensors", folder / "secret")
            entries = {"weight_map": {"model.norm.weight": target}}
            path = folder / "base/model.safetensors.index.json"
            path.write_text(json.dumps(entries))

        for command, words in COMMANDS.items():
            key = f"path/index-{name}/{command}"
            found.append(case(key, material, "base docs.jsonl", index, on_model(words, "base")))

        def saved(folder: Path, target: Any = target) -> None:
            (folder / "set").mkdir()
            (folder / "set/dataset_info.json").write_text("{}")
            state = {"_data_files": [{"filename": "../docs.arrow" if target == secret else target}]}
            (folder / "set/state.json").write_text(json.dumps(state))

        words = "pack-data set --tokenizer base --window 64 --out out".split()
        key = f"path/arrow-{name}/pack"
        found.append(case(key, material, "base docs.arrow", saved, words))

    for name, link in {"template": _linked_template, "cache": _linked_cache}.items():
        for command, words in COMMANDS.items():
            key = f"path/checkpoint-link-{name}/{command}"
            model = "base" if name == "template" else "hub/snapshots/1f0c"
            words = on_model(words, model)
            found.append(case(key, material, "base docs.jsonl", link, words))

    def manifest(folder: Path) -> None:
        path = folder / "packed/manifest.json"
        value = json.loads(path.read_text())
        value.pop("giraffe_seal", None)
        value["files"]["../../docs.jsonl"] = {"bytes": 1, "sha256": "0"}
        path.write_text(json.dumps(value))

    words = [*on_model(EXTEND, "base")]
    words[words.index("docs.jsonl")] = "packed"
    found.append(case("path/manifest/extend", material, "base packed", manifest, words))

    def links(folder: Path) -> None:
        (folder / "texts/out.md").symlink_to("/etc/passwd")
        (folder / "texts/inner").symlink_to("/etc")

    words = "pack-data texts --tokenizer base --window 64 --out out".split()
    found.append(case("path/link/pack", material, "base texts", links, words))
    found.append(
        case("path/link/pack-skip", material, "base texts", links, [*words, "--on-bad", "skip"])
    )
    return found


def _linked_template(folder: Path) -> None:
    """A checkpoint that has a file of the user's for its chat template."""
    (folder / "private").write_text(f"{SECRET}\n", encoding="utf-8")
    (folder / "base/chat_template.jinja").symlink_to(folder / "private")


def _linked_cache(folder: Path) -> None:
    """The layout of the hub's cache, of links alone: it must be read."""
    (folder / "hub/snapshots/1f0c").mkdir(parents=True)
    shutil.move(folder / "base", folder / "hub/blobs")
    for path in (folder / "hub/blobs").iterdir():
        (folder / "hub/snapshots/1f0c" / path.name).symlink_to(f"../../blobs/{path.name}")


# ── texts and names ──────────────────────────────────────────────────────────────────────────


def documents(folder: Path, identity: str, text: str) -> None:
    """A corpus whose every second document has a hostile name and text."""
    lines = (folder / "docs.jsonl").read_text(encoding="utf-8").splitlines()
    changed = []
    for number, line in enumerate(lines):
        record = json.loads(line)
        if number % 2:
            record = {"id": f"{identity}{number}", "text": f"{text} {record['text']} {text}"}
        changed.append(json.dumps(record))
    (folder / "docs.jsonl").write_text("\n".join(changed) + "\n", encoding="utf-8")


PACK = "pack-data docs.jsonl --tokenizer base --window 64 --out out".split()


def _texts(material: Path) -> list[Case]:
    found = []
    names = {"evil": EVIL, "up": "../../pwn", "absolute": "/tmp/x", "long": "x" * 70_000}
    commands = {
        "pack": [*PACK, "--report"],
        "pack-json": [*PACK, "--json"],
        "pack-dedupe": [*PACK, "--dedupe", "--rule", "one"],
        "extend": parts.EXTEND[:-1] + ["out"],
        "eval": COMMANDS["eval"],
        "eval-json": [*COMMANDS["eval"], "--json"],
        "limit": [*PACK, "--max-doc-bytes", "100"],
        "limit-skip": [*PACK, "--max-doc-bytes", "300", "--on-bad", "skip", "--report"],
        "compare": "rope compare yarn ntk --model base --data docs.jsonl --target-len 256"
        " --documents 2 --no-needles --minutes 1 --out out".split(),
    }
    for name, identity in names.items():
        text = EVIL if name == "evil" else "plain"
        change = partial(documents, identity=identity, text=text)
        for command, words in commands.items():
            chosen = on_model(words, "base")
            found.append(
                case(f"text/{name}/{command}", material, "base docs.jsonl", change, chosen)
            )
    for number, line in enumerate(
        (
            '{"id": "\\u001b[2J", "text": 7}',
            '{"\\u001b[2J": "x"}',
            '{"text": "\\u001b[2J\\u0000"}',
            '{"id": ' + "9" * 6000 + ', "text": "x"}',
            "[" * 100_000,
            '{"text": "x", "id": 1e999}',
            "\x1b[2J",
            '{"text": "\\ud800"}',
            '{"id": "\\ud800", "text": "x"}',
            '{"text": "a", "text": {"a": 1}}',
        )
    ):

        def bad(folder: Path, line: str = line) -> None:
            with open(folder / "docs.jsonl", "a", encoding="utf-8") as handle:
                handle.write(line + "\n")

        for command in ("pack", "limit-skip"):
            key = f"text/record-{number}/{command}"
            found.append(case(key, material, "base docs.jsonl", bad, commands[command]))
    return found


def _names(material: Path) -> list[Case]:
    """Files and folders whose names are hostile; a slash alone cannot be in one."""
    evil = EVIL.replace("/", "|")[:60]
    found = []

    def files(folder: Path) -> None:
        shutil.move(folder / "docs.jsonl", folder / f"{evil}.jsonl")
        shutil.move(folder / "base", folder / evil)
        with open(folder / f"{evil}.jsonl", "a") as handle:
            handle.write('{"text": 7}\n')

    corpus = f"{evil}.jsonl"
    pack = ["pack-data", corpus, "--tokenizer", evil, "--window", "64", "--out", f"out/{evil}"]
    commands = {
        "pack": pack,
        "pack-skip": [*pack, "--on-bad", "skip", "--report"],
        "mix": [*pack, "--mix", f"{corpus}=1", "--on-bad", "skip"],
        "missing": [
            "pack-data",
            f"{evil}.md",
            "--tokenizer",
            evil,
            "--window",
            "64",
            "--out",
            "out",
        ],
    }
    for command, words in COMMANDS.items():
        changed = [corpus if word == "docs.jsonl" else word for word in on_model(words, evil)]
        commands[command] = changed
        if command == "extend":
            commands["extend-skip"] = [*changed, "--on-bad", "skip"]
    for name, words in commands.items():
        found.append(case(f"name/files/{name}", material, "base docs.jsonl", files, words))

    def tree(folder: Path) -> None:
        for path in sorted((folder / "texts").iterdir())[:3]:
            path.rename(path.with_name(f"{path.stem}{evil}.md"))
        (folder / "texts" / f"{evil}.md").write_bytes(b"\xff\xfe\0")

    words = "pack-data texts --tokenizer base --window 64 --report --out out".split()
    found.append(case("name/tree/pack", material, "base texts", tree, words))
    return found
