"""The page's texts in English and Bengali."""

import ast
import re
import string
import unicodedata

import nbformat
import pytest

import golpo
from golpo.desk_form import PRESETS, SLIDERS
from golpo.desk_sentences import SENTENCES, Refusal, Term, error_in, say_in
from golpo.paths import PROJECT_DIR
from golpo.requests import CHOICES
from golpo.studio import SCRIPTS
from golpo.tastes import Learned
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


# The sentences that Python sends to the page.

SENDERS = sorted((PROJECT_DIR / "golpo").glob("desk*.py")) + [PROJECT_DIR / "golpo/studio.py"]
FROM_ELSEWHERE = {"there is no story to export; write one first"}
FIGURES = dict.fromkeys(("choices", "kept_aside", "left_out", "agreement_before"), 9)
FIGURES |= dict.fromkeys(("agreement_after", "val_loss_before", "val_loss_after"), 2)
FIGURES |= {"divergence": 0.1, "reached_bound": True, "seconds": 4.0}


def calls(path):
    """The calls in a Python file as pairs (name of what is called, arguments)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            yield getattr(name, "id", name), node.args


def sentences_of_the_desk() -> set[str]:
    """The sentences in the desk's files; each must stand there as a text."""
    found = set()
    for path in SENDERS:
        for name, arguments in calls(path):
            assert name not in ("ValueError", "RuntimeError"), f"{path.name} raises it untranslated"
            if path.name != "desk_sentences.py" and name in ("Refusal", "say", "sentence"):
                found |= {one.value for one in arguments[:1] if isinstance(one, ast.Constant)}
            elif path.name != "desk_sentences.py" and name == "say_in":
                found |= {one.value for one in arguments[1:2] if isinstance(one, ast.Constant)}
    return found


def fields(text: str) -> set[str]:
    """The names in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_every_sentence_of_the_desk_has_a_translation():
    found = sentences_of_the_desk()
    assert len(found) > 20
    learned = {sentence for sentence, _ in Learned(**FIGURES).sentences()}
    assert len(learned) == 5
    assert found | learned | FROM_ELSEWHERE == set(SENTENCES)
    assert all(is_bengali(re.sub(r"{.*?}", "", text)) for text in SENTENCES.values())
    for english, bengali in SENTENCES.items():
        assert fields(bengali) <= fields(english) | {"number"}, english


def test_the_figures_of_learning_fill_both_languages():
    learned = Learned(**FIGURES)
    lines = [say_in("bn", sentence, **values) for sentence, values in learned.sentences()]
    assert len(lines) == 5 and all(is_bengali(line) for line in lines)
    assert learned.describe().startswith("Learned from 9 choices in 4 s.\nOf 9 choices kept aside")


def test_an_error_is_said_in_the_language_of_the_page():
    error = Refusal("{label} is {value!r}; it must be a number from {low} to {high}",
                    label=Term("seed"), value="{x}", low=0, high=9)  # fmt: skip
    assert str(error) == error_in("en", error) == "seed is '{x}'; it must be a number from 0 to 9"
    assert is_bengali(error_in("bn", error)) and "বীজ" in error_in("bn", error)
    (elsewhere,) = FROM_ELSEWHERE
    assert is_bengali(error_in("bn", ValueError(elsewhere)))
    assert error_in("bn", ValueError("deep {below}")) == "deep {below}"
    assert error_in("bn", KeyError()) == "KeyError"
    with pytest.raises(ValueError, match="there is no language 'fr'"):
        say_in("fr", "Untitled")
