"""The script for a GPU runs to its end without one, in tiny sizes, and writes its results."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from golpo.corpus import read_stories
from golpo.paths import DEFAULT_CORPUS

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu_all.sh"
CORPORA = ("short_stories", "fairytales", "simple_stories")


def run_script(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        timeout=850,
    )


@pytest.mark.slow
def test_all_parts_of_the_rehearsal_succeed(tmp_path):
    stories = read_stories(DEFAULT_CORPUS)
    for name in CORPORA:
        text = "".join(itertools.islice(stories, 60))
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    results = tmp_path / "results"
    done = run_script(results, "--rehearse", "--corpora", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = dict(re.findall(r"^=== (\w+): exit code (\d+)", done.stdout, re.MULTILINE))
    assert codes == dict.fromkeys(("tests", "bundled", "gpu", "ablation"), "0"), done.stdout
    found = json.loads((results / "gpu.json").read_text())
    assert found["generation"]["ours, prepared, bf16"] > 0
    assert found["training"]["batch 8"]["ours, Muon"] > 0
    assert [one["name"] for one in json.loads((results / "ablations.json").read_text())]
    assert (results / "bundled" / "short_simple_stories" / "finished.json").exists()
    assert {path.stem for path in results.glob("*.log")} == set(codes)


def test_an_unknown_option_is_named(tmp_path):
    done = run_script(tmp_path, "--rehearsal")
    assert done.returncode == 2
    assert "--rehearsal" in done.stdout
