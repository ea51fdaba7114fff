"""A folder with a GPT-2 in Hugging Face's format, ours or others': read right, or refused."""

from pathlib import Path

from golpo.errors import CheckpointError
from golpo.hf_config import fold_attention_scale, model_config, read_config, read_facts
from golpo.hf_tokenizer_files import read_tokenizer
from golpo.hf_weights import find_weights, name_weights, read_weights_file
from golpo.huggingface import load_gpt2_weights
from golpo_utils import GPTModel


def read_hf(folder: str | Path) -> dict:
    """A folder with a GPT-2 in Hugging Face's format → {"model", "encoding", facts about it}.

    "encoding" is the tokenizer. Raises CheckpointError for another kind of model, for one that
    this project would compute differently, and for damaged files.
    """
    folder = Path(folder)
    theirs = read_config(folder)
    facts = read_facts(theirs)
    try:
        weights = name_weights(read_weights_file(find_weights(folder)))
        config = model_config(theirs, facts, weights)
        fold_attention_scale(weights, theirs)
        model = load_gpt2_weights(GPTModel(config), weights)
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{str(folder)!r} has no GPT-2 in Hugging Face's format: {error}"
        ) from None
    own_size = facts["config"]["vocab_size"] if "config" in facts else None
    encoding = read_tokenizer(folder, config["vocab_size"], own_size)
    defaults = {"global_step": 0, "tokens_seen": 0, "val_losses": []}
    found = {"config": model.config, "model": model, "encoding": encoding}
    return defaults | facts | found
