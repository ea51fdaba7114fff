"""Words of any script in pictures."""

import io
import warnings

import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure

from golpo.fonts import PLACEHOLDER, characters_in, font_families
from golpo.inspector import attention_picture

BENGALI = "গল্প"
has_bengali = any(
    set(BENGALI) <= characters_in(font.fname)
    for font in font_manager.fontManager.ttflist
    if not font.name.startswith(PLACEHOLDER)
)
needs_bengali = pytest.mark.skipif(
    not has_bengali, reason="no Bengali font: apt-get install fonts-lohit-beng-bengali"
)


def test_latin_words_need_no_other_font():
    assert font_families(["kite", "naïve", "…"]) == font_families([])


def test_a_character_that_no_font_has_is_passed_over():
    assert font_families(["\U000f1234"]) == font_families([])


@needs_bengali
def test_bengali_has_a_font_and_is_drawn_without_boxes():
    """matplotlib warns of each character that it draws as a box."""
    family = font_families([BENGALI])[-1]
    path = font_manager.findfont(family, fallback_to_default=False)
    assert set(BENGALI) <= characters_in(path)
    figure = Figure()
    figure.text(0, 0, BENGALI, family=font_families([BENGALI]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())


@needs_bengali
def test_the_attention_picture_tells_bengali_words_apart():
    """Boxes would look the same."""
    first, second = (attention_picture(torch.eye(1), [word]) for word in ("কাক", "মাম"))
    assert first != second
