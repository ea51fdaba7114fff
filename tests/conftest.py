"""What all tests share: fixtures, and a table of what slow tests measured."""

import os

import pytest
import torch
from helpers import SHARP_CONFIG
from trainings import (  # noqa: F401
    FIGURES,
    after_step,
    chance,
    corpus_file,
    epoch,
    one_thread,
    record_figure,
    settings,
    silent,
    training_corpus,
    uninterrupted,
)

from golpo_utils import FusedModule, GPTModel, get_tokenizer

if "PYTEST_XDIST_WORKER" in os.environ:  # with -n 2, each half of the tests has one core
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)


@pytest.fixture(params=[False, True], ids=["reference", "fused"])
def path(request, monkeypatch):
    """The modules as they are written out, and PyTorch's."""
    monkeypatch.setattr(FusedModule, "use_fused", request.param)


@pytest.fixture(scope="module")
def model():
    """A model that generates varied ids."""
    torch.manual_seed(2)
    return GPTModel(SHARP_CONFIG)


@pytest.fixture(scope="module")
def storyteller():
    """The same with GPT-2's tokenizer."""
    torch.manual_seed(2)
    return GPTModel({**SHARP_CONFIG, "vocab_size": 50261}), get_tokenizer()


def pytest_terminal_summary(terminalreporter):
    for tried, measured in FIGURES:
        terminalreporter.write_line(f"| {tried} | {measured} |")
