"""Messages of pages that come the wrong way round, twice at once, or not at all."""

import random
import threading

import pytest

from golpo.desk_inbox import Inbox


@pytest.fixture
def inbox():
    inbox = Inbox(lambda message: inbox.handled.append(message))
    inbox.handled = []
    return inbox


def messages(page, count, first=0):
    """A hello and what follows it."""
    names = ["hello"] + [f"{page} {number}" for number in range(1, count)]
    return [
        {"do": name, "page": page, "sequence": first + number} for number, name in enumerate(names)
    ]


def names(inbox):
    return [message["do"] for message in inbox.handled]


def test_a_title_that_comes_after_the_click_is_handled_before_it(inbox):
    """The kernel took "go" first and refused the title, because the model was at work."""
    for number, name in ((0, "hello"), (1, "edit"), (3, "form"), (4, "go"), (2, "title")):
        inbox.receive({"do": name, "page": "a", "sequence": number, "value": number})
    assert names(inbox) == ["hello", "edit", "title", "form", "go"]
    assert inbox.handled[2] == {"do": "title", "value": 2}


def test_pages_do_not_wait_for_each_other(inbox):
    one, other = messages("a", 3), messages("b", 3)
    for message in (one[0], one[2], *other):
        inbox.receive(message)
    assert names(inbox) == ["hello", "hello", "b 1", "b 2"]
    inbox.receive(one[1])
    assert names(inbox)[4:] == ["a 1", "a 2"]


def test_after_hello_nothing_waits_for_what_was_lost(inbox):
    """A page whose kernel restarted, or whose connection broke, says hello again."""
    for message in (*messages("a", 2), {"do": "edit", "page": "a", "sequence": 3}):
        inbox.receive(message)
    for message in messages("a", 2, first=4):
        inbox.receive(message)
    assert names(inbox) == ["hello", "a 1", "hello", "a 1"]


def test_a_new_kernel_waits_for_hello(inbox):
    later = messages("a", 3, first=7)
    for message in (later[1], later[0], later[2]):
        inbox.receive(message)
    assert names(inbox) == ["hello", "a 1", "a 2"]


def test_a_message_without_a_sequence_number_is_handled_at_once(inbox):
    inbox.receive({"do": "like", "number": 1})
    assert inbox.handled == [{"do": "like", "number": 1}]


def test_two_threads_change_nothing(inbox):
    sent = messages("a", 400)
    shuffled = sent[1:]
    random.Random(1).shuffle(shuffled)
    halves = (shuffled[::2], sent[:1] + shuffled[1::2])
    threads = [
        threading.Thread(target=lambda half=half: [inbox.receive(one) for one in half])
        for half in halves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(inbox) == [message["do"] for message in sent]
