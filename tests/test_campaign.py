"""The hardening campaign runs end to end with a handful of cases of each family, all of them sound.

The full counts are run by hand (`docs/reliability.md`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """Of one process for all families, as by hand; what it says where a case went wrong."""
    out = tmp_path_factory.mktemp("campaign")
    words = [sys.executable, "-m", "scripts.campaign", "--out", str(out), "--share", "0.004"]
    words += ["--most", "10"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", ["hostile", "corruption", "faults", "fuzz"])
def test_no_case_goes_wrong(summary, family):
    counts = summary[family]["groups"][family]
    assert counts["cases"] >= 8
    assert summary[family]["wrong"] == {}
    told = sum(counts.get(kind, 0) for kind in ("same", "refused", "resumed", "limit"))
    assert told == counts["cases"]


def test_kills_fall_inside_writes(summary):
    counts = summary["faults"]["groups"]["faults"]
    assert counts["killed"] > 0
    assert counts["inside_a_write"] > 0
