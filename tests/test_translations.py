"""The page's texts in English and Bengali."""

import re
import unicodedata

import nbformat
import pytest

import golpo
from golpo.desk_form import PRESETS, SLIDERS
from golpo.paths import PROJECT_DIR
from golpo.requests import CHOICES
from golpo.studio import SCRIPTS
from golpo.translations import FORM, STUDIO, explain_form, page_labels, translate


def form_fields() -> set[str]:
    """The names of the form's fields in train.ipynb, of the cell with the title Settings."""
    notebook = nbformat.read(PROJECT_DIR / "notebooks/train.ipynb", as_version=4)
    (source,) = [cell.source for cell in notebook.cells if "# @title Settings" in cell.source]
    return set(re.findall(r"^(\w+) = .*# @param", source, re.M))


def is_bengali(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    bengali = [letter for letter in letters if "BENGALI" in unicodedata.name(letter)]
    return len(bengali) > len(letters) / 2


def test_every_field_of_the_form_is_explained_in_both_languages(capsys):
    assert set(FORM) == form_fields()
    for language in ("en", "bn"):
        explain_form(language)
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[0] for line in lines} == form_fields()
        for line in lines:
            assert is_bengali(line[20:]) == (language == "bn"), line


def test_an_unknown_language_is_named():
    with pytest.raises(ValueError, match="there is no language 'fr'; they are 'en', 'bn'"):
        golpo.explain_form("fr")
    with pytest.raises(ValueError, match="there is no language 'fr'"):
        translate("Stop", "fr")


# Where the scripts have texts that the page shows: button("Stop", …), field("x", "Hero", "hint").
SHOWN = (
    r'\b(?:t|button|fold|toggle|say)\("([^"]+)"',
    r'(?:placeholder|ariaLabel|title|alt): "([^"]+)"',
    r'field\("\w+", "([^"]+)"',
    r'field\("\w+", "[^"]+",\s*"([^"]+)"',
    r'"label|className: "small" \},\s*"([^"]+)"',
    r'h\("option", [^)]*\? "([^"]+)"',
    r'\|\| "([^"]+)"',
    r'\? "([A-Z][a-z]+)" : "',
    r'" : "([A-Z][a-z]+)"\)',
    r'(?:ready|writing|stopped|end|limit|html|txt): "([^"]+)"',
    r'const silent = "([^"]+)"',
)
SAME = {"Ctrl+Enter", "Esc", "Ctrl+Z", "Ctrl+Shift+Z", "Hanna", "lamp, owl", "off", "shaded"}


def texts_of_the_studio() -> set[str]:
    """The English texts in the page's scripts, and those that Python sends to it."""
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    shown = {text for pattern in SHOWN for text in re.findall(pattern, scripts) if text}
    sliders = {text for label, *_, note in SLIDERS.values() for text in (label, note)}
    sliders -= {"top-k", "top-p", "min-p"}  # the same in each language
    return (shown | sliders | set(PRESETS) | set(CHOICES["length"])) - SAME


def test_every_text_of_the_studio_has_a_translation():
    assert texts_of_the_studio() - set(STUDIO) == set()
    labels = page_labels("bn")
    assert all(is_bengali(text) for text in labels.values() if "HTML" not in text)
    assert page_labels("en") == {}
    with pytest.raises(ValueError, match="there is no language 'fr'"):
        page_labels("fr")


def test_no_translation_is_left_over():
    """Each English text stands in a script, or is sent by Python."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    assert {text for text in STUDIO if f'"{text}"' not in scripts} <= texts_of_the_studio()
