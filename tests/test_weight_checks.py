"""Checkpoints whose entries are of other kinds are named, and never an error from the depths."""

import pytest
import torch
from trainings import training_settings

from golpo.errors import CheckpointError
from golpo.inference import describe_checkpoint, load_storyteller
from golpo.runs import resume_training_from_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*has no manifest"),
    pytest.mark.usefixtures("one_thread", "silent"),
]


def weights_of(change):
    """A change of each weight of a checkpoint."""

    def apply(entries):
        weights = entries["model_state_dict"]
        entries["model_state_dict"] = {name: change(weight) for name, weight in weights.items()}

    return apply


def entry(name, value):
    return lambda entries: entries.__setitem__(name, value)


DAMAGES = {
    "weights a list": (entry("model_state_dict", [1]), "its 'model_state_dict' is a list"),
    "weights None": (entry("model_state_dict", None), "its 'model_state_dict' is a NoneType"),
    "weights empty": (entry("model_state_dict", {}), "'tok_emb.weight': missing in the file"),
    "weights numbers": (weights_of(lambda weight: 1.0), "no dense tensor"),
    "weights sparse": (weights_of(torch.Tensor.to_sparse), "no dense tensor"),
    "names numbers": (entry("model_state_dict", {1: torch.zeros(1)}), "no dense tensor"),
    "config a list": (entry("config", [1]), "its 'config' is a list"),
    "settings a str": (entry("settings", "x"), "its 'settings' is a str"),
    "state a list": (entry("state", [1]), "its 'state' is a list"),
    "optimizer a str": (entry("optimizer_state_dict", "x"), "its 'optimizer_state_dict' is a str"),
    "losses a str": (entry("val_losses", "1.5"), "its 'val_losses' is a str"),
    "step a str": (entry("global_step", "7"), "its 'global_step' is a str"),
    "tokenizer a list": (entry("tokenizer_data", [1]), "its 'tokenizer_data' is a list"),
}
RESUMING = {
    "optimizer empty": (entry("optimizer_state_dict", {}), "no optimizer of this kind"),
    "random state empty": (entry("random_states", {}), "the random state in .* is damaged"),
    "random state short": (entry("random_states", {"torch": [1, 2]}), "is damaged"),
}


def damaged(uninterrupted, tmp_path, change):
    entries = dict(uninterrupted)
    change(entries)
    torch.save(entries, tmp_path / "foreign.pt")
    return tmp_path / "foreign.pt"


@pytest.mark.parametrize("damage", DAMAGES)
def test_entries_of_another_kind_are_named(uninterrupted, training_corpus, tmp_path, damage):
    """F: whether it is loaded to generate or to resume."""
    change, words = DAMAGES[damage]
    path = damaged(uninterrupted, tmp_path, change)
    with pytest.raises(CheckpointError, match=f"foreign.pt .*{words}"):
        load_storyteller(path)
    settings = training_settings(training_corpus, tmp_path)
    with pytest.raises(CheckpointError, match=f"foreign.pt .*{words}"):
        resume_training_from_checkpoint(tmp_path, "foreign.pt", data_path=settings["data_path"])


@pytest.mark.parametrize("damage", RESUMING)
def test_what_only_resuming_needs_is_named_then(uninterrupted, training_corpus, tmp_path, damage):
    """F: the weights are good, so stories can still be generated."""
    change, words = RESUMING[damage]
    path = damaged(uninterrupted, tmp_path, change)
    load_storyteller(path)
    settings = training_settings(training_corpus, tmp_path)
    with pytest.raises(CheckpointError, match=words):
        resume_training_from_checkpoint(
            tmp_path,
            "foreign.pt",
            **{name: settings[name] for name in ("data_path", "num_epochs", "sample_tokens")},
        )


def test_weights_without_a_history_are_loaded_and_described(uninterrupted, tmp_path):
    """F: what other programs write beside the weights is theirs to choose."""
    entries = {name: uninterrupted[name] for name in ("model_state_dict", "config")}
    torch.save(entries, tmp_path / "weights.pt")
    about = load_storyteller(tmp_path / "weights.pt")[2]
    assert describe_checkpoint(about) == "weights.pt, step 0, 0 tokens seen"
