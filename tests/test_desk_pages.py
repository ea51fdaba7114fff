"""What the writer's desk sends to its pages: only what is new, and the same to all of them."""

import asyncio
import json
import random
import threading

import pytest
import torch
from desk_page import Page, authors, script_model
from helpers import WORDS_CONFIG

import golpo.desk_writing
from golpo.desk import Desk
from golpo.desk_pages import Pages, row_parts
from golpo.manuscript import Manuscript
from golpo_utils import GPTModel, get_tokenizer

WORDS = ["There", " was", " a", " little", " girl", ",", " and", " the", " door", " was", " open"]


@pytest.fixture
def desk(tmp_path):
    torch.manual_seed(0)
    desk = Desk(GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096), tmp_path, "", None)
    desk.pages_open = []
    desk.events = []

    def send(event, buffers=None):
        desk.events.append(event)
        for page in desk.pages_open:
            page.take(event, buffers)

    desk.send = send
    desk.ask = lambda do, /, **values: desk.receive({"do": do, **values})
    return desk


def open_page(desk):
    """Another page, which has asked for all there is."""
    page = Page()
    desk.pages_open.append(page)
    desk.ask("hello")
    return page


@pytest.fixture
def writes(monkeypatch):
    """Let the model write from a script: writes(pieces, why) → the calls that were made."""
    return script_model(monkeypatch)


def size(events):
    """The bytes of messages as Jupyter sends them, without their envelopes."""
    return sum(len(json.dumps(event, ensure_ascii=False).encode()) for event in events)


def write_on_a_loop(desk, monkeypatch, passages):
    """Write so many passages at 400 tokens a second, one after the other, as in a notebook."""
    real_sleep = asyncio.sleep
    monkeypatch.setattr(golpo.desk_writing.asyncio, "sleep", lambda _: real_sleep(0.0025))

    async def play():
        for number in range(passages):
            desk.ask("go", request=100 + number)
            while desk.runner.busy:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(play(), timeout=60))


@pytest.mark.parametrize("passages", [1, 68])
def test_only_what_is_new_is_sent(desk, writes, monkeypatch, passages):
    """2,000 tokens, in one passage or in as many as the bundled model makes of them."""
    desk.ask("edit", start=0, end=0, text="Once upon a time there lived a king. " * 3, length=0)
    desk.ask("new")
    for _ in range(5):  # other stories on the shelf
        desk.ask("edit", start=0, end=0, text="Another story. ", length=0)
        desk.ask("new")
    page = open_page(desk)
    words = [WORDS[n % len(WORDS)] for n in range(2000 // passages)]
    writes(["<|title|>A", " Girl</|title|>\n\n", *words], "limit" if passages == 1 else "end")
    desk.events.clear()
    write_on_a_loop(desk, monkeypatch, passages)
    text = page.text.encode()
    assert page.text == desk.manuscript.text and len(text) > 8000
    assert sum("+" in event for event in desk.events) > max(20, 2 * passages)
    assert size(desk.events) <= 2 * len(text), size(desk.events) / len(text)


def test_what_has_not_changed_is_not_sent(desk, writes):
    desk.ask("edit", start=0, end=0, text="One day", length=0)
    open_page(desk)
    desk.events.clear()
    desk.ask("title", title="")
    desk.ask("redo")
    desk.ask("search")
    assert desk.events == [{"done": None}] * 3
    desk.events.clear()
    desk.ask("title", title="The Mill")
    assert desk.events == [{"ev": "state", "title": "The Mill"}, {"done": None}]
    writes([" a fox ran."])
    desk.events.clear()
    desk.ask("go", request="x1")
    first, second, *_ = desk.events
    assert first == {"ev": "state", "state": ["writing"]}
    assert second == {"+": " a fox ran.", "retry": True}


def test_each_message_is_answered(desk):
    """A page that hears nothing for 20 seconds says that the kernel does not answer."""
    for values in ({"do": "strength", "value": 9}, {"do": "stop"}, {"do": "undo"}, {"do": "?"}):
        desk.events.clear()
        desk.receive(values | {"request": 7})
        assert desk.events[-1] == {"done": 7}


@pytest.mark.parametrize("seed", range(8))
def test_pages_are_in_step_at_each_moment(desk, writes, tmp_path, seed):
    """Whatever changes, and however late a page opens: also while the model writes."""
    chance = random.Random(seed)
    open_page(desk)

    def in_step():
        for page in desk.pages_open:
            if page.is_complete:
                assert page.text == desk.shown and page.facts == desk.pages.facts
                assert page.shelf == desk.pages_open[0].shelf

    def edit():
        old = desk.manuscript.text
        start, end = sorted(chance.choices(range(len(old) + 1), k=2))
        text = chance.choice(["", "x", " a 😀 fox", old[start:end], "A dog"])
        desk.ask("edit", start=start, end=end, text=text, length=len(old), source="p")

    def go():
        late = [lambda: open_page(desk)] if chance.random() < 0.3 else [in_step]
        writes([" A dog", " ran", *late, ".", " It", " slept."], chance.choice(["end", "limit"]))
        desk.ask(chance.choice(["go", "retry"]))

    def another_story():
        desk.ask("open", name=chance.choice(desk.pages_open[0].rows or [{"name": "none"}])["name"])

    actions = [edit, edit, go, go, another_story, lambda: open_page(desk)]
    actions += [lambda name=name: desk.ask(name) for name in ("undo", "redo", "undo", "new")]
    actions += [lambda: desk.ask("title", title=chance.choice(["", "The Mill", "Fox"]))]
    for _ in range(60):
        chance.choice(actions)()
        in_step()
        assert desk.pages_open[0].authors == authors(desk)
    assert len(desk.pages_open) > 2 and all(page.is_complete for page in desk.pages_open)


def test_a_page_that_has_not_asked_yet_heeds_no_change(desk, writes):
    late = Page()
    desk.pages_open.append(late)
    writes(["A dog", lambda: desk.ask("hello"), " ran."])
    desk.ask("go")
    changes = [event for event in late.events if "+" in event or event.get("ev") == "text"]
    assert len(changes) > 1 and late.text == "A dog ran."


def test_two_threads_send_in_the_order_in_which_they_changed(desk):
    page = open_page(desk)

    def write():
        for number in range(200):
            desk.manuscript.begin_passage()
            desk.manuscript.append(f" w{number}")
            desk.manuscript.end_passage("limit")
            desk.show()

    thread = threading.Thread(target=write)
    thread.start()
    for number in range(100):
        desk.ask("hello" if number % 10 == 0 else "stop")
        desk.show()
    thread.join()
    assert page.text == desk.manuscript.text and page.facts == desk.facts()


def test_the_same_words_of_another_author_are_a_change():
    events = []
    pages = Pages(events.append)
    story = Manuscript("", "A dog ran.")
    pages.show(story.now, {"state": ["ready"]})
    story.begin_passage(2)
    story.append("dog ran.")
    pages.show(story.now, {"state": ["ready"]})
    assert events[1] == {"ev": "text", "at": 2, "cut": 8, "new": "dog ran.", "marks": [[1, 8]]}


def rows(names):
    return [{"name": name} for name in names]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("", "ab", rows("ab")),
        ("abc", "abc", [[0, 3]]),
        ("abcd", "cabd", [[2, 3], [0, 2], [3, 4]]),
        ("abcd", "abd", [[0, 2], [3, 4]]),
        ("abc", "xabc", [*rows("x"), [0, 3]]),
        ("abc", "", []),
    ],
)
def test_rows_that_the_pages_have_are_sent_as_their_places(old, new, parts):
    assert row_parts(rows(old), rows(new)) == parts


def test_a_row_that_has_changed_is_sent_whole():
    old = [{"name": "a", "title": "A"}, {"name": "b", "title": "B"}]
    new = [{"name": "b", "title": "C"}, old[0]]
    assert row_parts(old, new) == [new[0], [0, 1]]
