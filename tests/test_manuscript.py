"""A story with two authors: who wrote what, and every earlier version of it."""

import random

import pytest

from golpo.manuscript import MODEL, PERSON, Manuscript, Passage


def authors(story):
    return [(passage.author, passage.text) for passage in story.now.passages]


def write(story, *pieces, at=None, why="limit"):
    story.begin_passage(at)
    for piece in pieces:
        story.append(piece)
    story.end_passage(why)


def test_an_edit_inside_a_passage_splits_it():
    story = Manuscript()
    write(story, "A fox ", "ran home.")
    story.edit(6, 9, "walked")
    assert story.text == "A fox walked home."
    assert authors(story) == [(MODEL, "A fox "), (PERSON, "walked"), (MODEL, " home.")]
    story.edit(12, 12, " all the way")
    assert authors(story)[1] == (PERSON, "walked all the way")


def test_a_passage_is_one_step_and_an_edit_is_one_step():
    story = Manuscript("Fox", "Once")
    write(story, " upon", " a", " time")
    story.set_title("The Fox")
    assert (story.title, story.text) == ("The Fox", "Once upon a time")
    story.undo()
    assert story.title == "Fox"
    story.undo()
    assert story.text == "Once" and not story.can_undo
    story.undo()
    assert story.text == "Once"
    story.redo()
    story.redo()
    story.redo()
    assert (story.title, story.text, story.can_redo) == ("The Fox", "Once upon a time", False)


def test_writing_inside_keeps_what_followed_as_an_earlier_version():
    story = Manuscript("", "One. Two. Three.")
    write(story, " Four.", at=4)
    assert story.text == "One. Four."
    story.undo()
    assert story.text == "One. Two. Three."


def test_the_last_passage_begins_where_the_model_began():
    story = Manuscript("", "One.")
    assert story.last_passage() is None
    write(story, " Two.")
    story.edit(9, 9, " Three.")
    assert story.last_passage() == 4
    write(story, " Four.")
    assert story.last_passage() == 16
    story.undo()
    assert story.last_passage() == 4
    story.edit(0, len(story.text), "New.")
    assert story.last_passage() is None


def test_a_passage_that_brings_nothing_leaves_no_version():
    story = Manuscript("", "One.")
    write(story, why="stopped")
    assert not story.can_undo and story.now.ended == "stopped"
    story.edit(4, 4, "")
    assert not story.can_undo


def test_the_model_may_choose_the_title():
    story = Manuscript()
    story.begin_passage()
    story.append("", title="The Mill")
    story.append("Once.")
    story.end_passage("end")
    assert (story.title, story.text, story.now.ended) == ("The Mill", "Once.", "end")
    story.undo()
    assert (story.title, story.text) == ("", "")


def test_a_position_outside_is_one_sentence():
    with pytest.raises(ValueError, match="from 2 to 9; the text has 4 characters"):
        Manuscript("", "Once").edit(2, 9, "x")


@pytest.mark.parametrize("seed", range(20))
def test_undo_and_redo_go_over_every_change(seed):
    """Against a plain list of all texts; characters of four bytes and line breaks among them."""
    chance = random.Random(seed)
    story = Manuscript()
    texts = [""]
    for _ in range(60):
        start = chance.randint(0, len(story.text))
        end = chance.randint(start, len(story.text))
        word = "".join(chance.choices("ab\n🦊é", k=chance.randint(1, 4)))
        if chance.random() < 0.5:
            expected = story.text[:start] + word + story.text[end:]
            story.edit(start, end, word)
        else:
            expected = story.text[:start] + word
            write(story, *word, at=start)
        assert story.text == expected
        if texts[-1] != expected:
            texts.append(expected)
    while story.can_undo:
        assert story.text == texts[story.shown]
        story.undo()
    assert story.text == ""
    for text in texts[1:]:
        story.redo()
        assert story.text == text
    assert not story.can_redo


def test_neighbours_of_one_author_are_one_passage():
    story = Manuscript("", "One")
    story.edit(3, 3, ", two")
    story.edit(8, 8, ", three")
    assert story.now.passages == (Passage(PERSON, "One, two, three"),)
