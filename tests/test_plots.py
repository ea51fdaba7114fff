"""The pictures, with names and figures that matplotlib could stumble over."""

import json

import pytest

from golpo.plots import SHARES, draw_evaluation, png_bytes, show_training
from golpo.progress import draw_losses

COMPLETE = {
    "step": 10,
    "epoch": 1.0,
    "tokens_seen": 1000,
    "train_loss": 5.0,
    "val_loss": 5.0,
    "val_perplexity": 1e304,
    "learning_rate": 1e-3,
    "tokens_per_second": 10.0,
    "seconds_left": 1.0,
}


@pytest.mark.parametrize("name", ["$$", "$x^", "a_$\\frac", "100 %", "🦊"])
def test_the_name_of_a_compared_file_is_never_a_formula(name):
    """A: the columns of an evaluation are named after files."""
    figures = {share: 0.5 for share in SHARES.values()} | {"stories": 2, "bits_per_byte": 1.25}
    figure = draw_evaluation({name: figures, "reference": figures})
    assert png_bytes(figure).startswith(b"\x89PNG")
    assert name in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("losses", [[750.0, 5.0], [1e30, 1e30], [0.0, 0.0], [5.0]])
def test_losses_of_any_size_are_drawn(scale, losses):
    """A: also one whose perplexity overflows."""
    figure = draw_losses(list(range(len(losses))), losses, losses, scale)
    assert png_bytes(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("foreign", [{"step": 20}, {**COMPLETE, "step": 20, "val_loss": "low"}])
def test_records_that_lack_a_number_are_left_out(tmp_path, capsys, foreign):
    """B: a foreign record in the metrics file hides no other."""
    lines = [json.dumps(record) + "\n" for record in (COMPLETE, foreign)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    show_training(tmp_path)
    assert "(perplexity 1.0e+304)" in capsys.readouterr().out
    (tmp_path / "metrics.jsonl").write_text(lines[1])
    with pytest.raises(FileNotFoundError, match="no records"):
        show_training(tmp_path)
