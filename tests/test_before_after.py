"""What a finetuning has changed, against losses and stories computed one by one."""

import pytest
import torch
from trainings import newest, train

from golpo.before_after import compare_finetuning
from golpo.cli import main
from golpo.corpus import load_corpus
from golpo.inference import load_storyteller
from golpo_utils import get_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "silent")


def loss_of(model, corpus) -> float:
    """The mean loss over the validation stories, one token at a time, by torch."""
    tokenizer = get_tokenizer(300)
    ids = load_corpus(corpus, tokenizer, 0.1, 123).val_ids.long()
    starts = (ids == tokenizer.encode_single_token("<|start|>")).nonzero().flatten().tolist()
    losses = []
    for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        story = ids[begin:end]
        for start in range(0, len(story) - 1, 16):
            window = story[start : start + 17]
            with torch.no_grad():
                logits = model(window[None, :-1])[0]
            losses += torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
    return sum(map(float, losses)) / len(losses)


@pytest.mark.parametrize("rank", [0, 3])
def test_losses_before_and_after_are_those_of_both_models(training_corpus, tmp_path, capsys, rank):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    train(training_corpus, base, num_epochs=2, learning_rate=0.01)
    more = {"start_from": str(base), "adapter_rank": rank, "learning_rate": 0.02}
    train(training_corpus, tuned, num_epochs=2, **more)
    options = {"title": None, "prompt": "the old", "max_new_tokens": 12, "seed": 3}
    result = compare_finetuning(tuned, **options)
    models = [load_storyteller(folder, which="best")[0] for folder in (base, tuned)]
    for model, measured in zip(models, (result.before, result.after), strict=True):
        assert measured.val_loss == pytest.approx(loss_of(model, training_corpus), abs=1e-4)
    assert result.after.val_loss < result.before.val_loss
    assert result.before.val_loss == pytest.approx(newest(base)["best_val_loss"], abs=1e-4)
    assert result.before.story != result.after.story
    assert all(one.story.startswith("the old") for one in (result.before, result.after))
    assert result.parameters == sum(one.numel() for one in models[0].parameters())
    per_layer = rank * (16 + 48 + 16 + 16 + 16 + 64 + 64 + 16)
    assert result.learned == (per_layer or result.parameters)
    printed = capsys.readouterr().out
    main(["compare", "--checkpoint", str(tuned), "--prompt", "the old", "--seed", "3",
          "--max-new-tokens", "12"])  # fmt: skip
    assert capsys.readouterr().out.strip() in printed


def test_a_training_from_nothing_cannot_be_compared(training_corpus, tmp_path):
    train(training_corpus, tmp_path, num_epochs=1, max_steps=3)
    with pytest.raises(ValueError, match="started from no other model"):
        compare_finetuning(tmp_path)
