"""scripts/hide_lookups.py: facts and their questions, whole within what becomes one window."""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script

ROOT = Path(__file__).parent.parent
CALF = ROOT / "giraffe_cli/calf"
WINDOW = 1024
TEXT = " ".join(f"On day {n} the ship lay at {n * 7} degrees, all in fog." for n in range(400))


@pytest.fixture(scope="module")
def script():
    return load_script("hide_lookups")


def hider(script, plain=0.0):
    return script.Hider(script.load_tokenizer(CALF), [TEXT], WINDOW, 8, plain)


def test_every_fact_stands_before_its_question_in_the_same_window(script):
    made = hider(script)
    stretches = list(made.stretches(np.random.default_rng(0), TEXT))
    assert len(stretches) > 4
    for number, (stretch, lookups) in enumerate(stretches[:-1]):
        assert len({look.fact for look in lookups}) == 8
        before = len(made._encode("".join(text for text, _ in stretches[:number])))
        assert abs(before - number * WINDOW) < WINDOW / 20  # what packing cuts
        for look in lookups:
            assert 0 <= stretch.find(look.fact) < stretch.rfind(look.question.strip())


def test_the_document_itself_is_kept_in_order(script):
    kept = []
    for stretch, lookups in hider(script).stretches(np.random.default_rng(1), TEXT):
        for look in lookups:
            stretch = stretch.replace(f"\n\n{look.question.strip()}\n\n", "", 1)
        for look in lookups:
            stretch = stretch.replace(f" {look.fact}", "", 1)
        kept.append(stretch)
    assert re.findall(r"On day (\d+)", "".join(kept)) == [str(n) for n in range(400)]


def test_plain_stretches_repeat_sentences_in_the_place_of_the_text(script):
    *plain, last = hider(script, plain=1.0).stretches(np.random.default_rng(2), TEXT)
    assert len(plain) > 4
    assert "the ship lay" in last[0]
    assert all("the ship lay" not in text and len(lookups) == 8 for text, lookups in plain)


def test_the_command_leaves_held_out_documents_as_they_are_and_repeats_itself(tmp_path):
    documents = [{"id": f"d{n}", "text": TEXT} for n in range(4)]
    data = tmp_path / "books.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    read = []
    for name in ("one", "two"):
        out = tmp_path / f"{name}.jsonl.gz"
        command = [sys.executable, str(ROOT / "scripts/hide_lookups.py"), str(data)]
        command += ["--tokenizer", str(CALF), "--window", "1k", "--facts", "4", "--out", str(out)]
        subprocess.run([*command, "--hold-out", "0.3"], check=True, capture_output=True, cwd=ROOT)
        with gzip.open(out, "rt") as handle:
            read.append([json.loads(line) for line in handle])
    assert read[0] == read[1]
    unchanged = {entry["id"] for entry in read[0] if entry["text"] == TEXT}
    assert unchanged == {d["id"] for d in documents} - {
        entry["id"] for entry in read[0] if "?" in entry["text"]
    }
    assert 0 < len(unchanged) < 4
