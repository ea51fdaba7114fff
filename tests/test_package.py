"""The installed package: without a checkout, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_the_installed_package_has_its_command_its_model_and_its_corpus(tmp_path):
    """Built with what pip brings, installed into a folder of its own, and run in another one."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*pip, PROJECT], check=True)
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def golpo(*arguments):
        return subprocess.run(
            [sys.executable, site / "bin" / "golpo", *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = golpo("generate", "--checkpoint", "bundled", "--max-new-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    small = ["--config.emb-dim=32", "--config.n-layers=1", "--sample-tokens=0", "--max-steps=1"]
    done = golpo("train", *small)
    assert done.returncode == 0, done.stderr
    assert "Starting a fresh training." in done.stdout
    assert (work / "gpt_checkpoints" / "checkpoint_a.pt").exists()
    assert list(work.iterdir()) == [work / "gpt_checkpoints"]
