"""The desk's scripts in a real browser, several pages at once, with the messages of a real desk.

No Jupyter is between them: a test hands on each message when it likes.
"""

import random
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from desk_page import Page, authors, script_model
from helpers import WORDS_CONFIG

import golpo.desk_writing
from golpo.desk import Desk
from golpo.desk_inbox import Inbox
from golpo.studio import SCRIPTS
from golpo_utils import GPTModel, get_tokenizer

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is missing")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]
TYPED = 600  # milliseconds until what was typed is sent
OPEN = """() => {
    const model = { sent: [], heard: {}, get: () => ({}), off() {} };
    model.on = (name, action) => { model.heard[name] = action; };
    model.send = (message) => model.sent.push(message);
    const el = document.createElement("div");
    document.body.append(el);
    desk.render({ model, el });
    (window.pages ??= []).push({ model, el });
}"""
SEEN = """n => {
    const { el } = pages[n];
    const area = el.querySelector(".paper textarea");
    const model = [...el.querySelectorAll(".mirror .m")].map((node) => node.textContent).join("");
    return [area.value, el.querySelector(".mirror").textContent.replace("\\u200b", ""), model,
      el.querySelector("input.title").value, area.readOnly, el.dataset.state,
      [...el.querySelectorAll(".rows .link")].map((node) => node.textContent).join("|")];
}"""
TYPE = """([n, text]) => {
    const area = pages[n].el.querySelector(".paper textarea");
    area.value = text;
    area.dispatchEvent(new Event("input"));
}"""
PRESS = """([n, name]) => [...pages[n].el.querySelectorAll("button")]
    .find((button) => button.textContent === name).click()"""


class Room:
    """A desk, and pages in a browser that show it.

    stub: what a page must show that has heard everything that was handed on.
    """

    def __init__(self, browser_page, desk):
        self.browser_page = browser_page
        self.desk = desk
        desk.send = lambda event, buffers=None: self.events.append(event)
        self.inbox = Inbox(desk.receive)
        self.thread = ThreadPoolExecutor(1)  # without an event loop: an action ends before receive
        self.events = []
        self.stub = Page()
        self.count = 0

    def open(self):
        """Open a page; its hello waits."""
        self.browser_page.evaluate(OPEN)
        self.count += 1
        return self.count - 1

    def sent(self, number):
        """What a page has sent since this was asked last."""
        return self.browser_page.evaluate("n => pages[n].model.sent.splice(0)", number)

    def handle(self, messages):
        """Let the desk do what pages ask for."""
        for message in messages:
            self.thread.submit(self.inbox.receive, message).result(60)

    def hand_on(self, only=None):
        """Hand the desk's messages to all pages, or to those in `only`, one by one."""
        for event in self.events:
            self.stub.take(event)
            for number in only or range(self.count):
                self.browser_page.evaluate(
                    "([n, event]) => pages[n].model.heard['msg:custom'](event, [])",
                    [number, event],
                )
            yield event
        self.events.clear()

    def settle(self):
        """Hand on everything that waits, to and fro, until nothing more comes."""
        for _ in range(10):
            messages = [message for n in range(self.count) for message in self.sent(n)]
            self.handle(messages)
            if not self.events:
                return
            list(self.hand_on())
        raise AssertionError("the pages and the desk do not come to rest")

    def type(self, number, text, wait=True):
        self.browser_page.evaluate(TYPE, [number, text])
        self.browser_page.wait_for_timeout(TYPED if wait else 0)

    def press(self, number, name):
        self.browser_page.evaluate(PRESS, [number, name])

    def seen(self, number):
        return self.browser_page.evaluate(SEEN, number)

    def check(self, number):
        """A page shows what the stub, which heard the same, has."""
        text, mirror, model, title, _, _, rows = self.seen(number)
        stub = self.stub
        assert (text, mirror) == (stub.text, stub.text)
        pairs = zip(stub.text, stub.authors, strict=True)
        assert model == "".join(letter for letter, author in pairs if author)
        assert title == stub.facts["title"]
        assert rows == "|".join(row["title"] for row in stub.rows)

    def check_all(self):
        """All pages show the desk's story, and take typing."""
        assert self.stub.text == self.desk.manuscript.text
        assert self.stub.authors == authors(self.desk)
        for number in range(self.count):
            self.check(number)
            assert self.seen(number)[4] is False


@pytest.fixture(scope="module")  # its event loop must be gone before the next file's tests
def browser():
    with playwright.sync_playwright() as driver:
        flags = ["--headless", "--no-sandbox", "--disable-gpu"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def room(browser, tmp_path):
    torch.manual_seed(0)
    desk = Desk(GPTModel(WORDS_CONFIG).eval(), get_tokenizer(4096), tmp_path, "a model", None)
    page = browser.new_page()
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    script = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    page.set_content("<title>Desk</title>")
    page.add_script_tag(content=script.replace("export default", "window.desk ="))
    room = Room(page, desk)
    for _ in range(2):
        room.open()
    room.settle()
    yield room
    room.thread.shutdown()
    assert not faults
    page.close()


@pytest.fixture
def writes(monkeypatch):
    """writes(pieces, why): each piece is sent on its own."""
    monkeypatch.setattr(golpo.desk_writing, "SECONDS_BETWEEN_FRAMES", -1.0)
    monkeypatch.setattr(golpo.desk_writing, "WORTH_A_FRAME", 0)
    return script_model(monkeypatch)


def test_pages_show_the_same_after_each_change(room, writes):
    writes(["<|title|>The", " Fox</|title|>\n\nA 😀 dog", " ran."])
    room.press(0, "Write")
    room.settle()
    room.check_all()
    assert room.seen(1)[0] == "A 😀 dog ran."
    room.type(1, "A 😀 small dog ran home.")
    room.settle()
    room.check_all()
    writes([" It", " slept."], "limit")
    for number, name in ((1, "Continue"), (0, "Retry"), (1, "Undo"), (0, "Undo"), (1, "Redo")):
        room.press(number, name)
        room.settle()
        room.check_all()
    for name in ("New story", "Write"):
        room.press(0, name)
        room.settle()
        room.check_all()
    room.browser_page.evaluate("pages[1].el.querySelectorAll('.rows .link')[1].click()")
    room.settle()
    room.check_all()
    assert room.desk.manuscript.title == "The Fox"


def test_a_page_that_opens_while_the_model_writes_is_in_step_at_each_moment(room, writes):
    late = room.open()
    hello = room.sent(late)
    writes(["A dog", " ran", lambda: room.inbox.receive(hello[0]), " home", " and", " slept."])
    room.press(0, "Write")
    room.handle(room.sent(0))
    has_opened = False
    for event in room.hand_on():
        has_opened |= event.get("ev") == "all"
        room.check(0)
        room.check(1)
        if has_opened:
            room.check(late)
        else:
            assert room.seen(late)[0] == ""
    assert has_opened
    room.check_all()


def test_typing_outlasts_another_page_that_opens(room):
    room.type(0, "One day")
    room.settle()
    room.type(0, "One day, a fox", wait=False)
    room.open()
    room.settle()
    assert room.seen(0)[0] == "One day, a fox"
    room.browser_page.wait_for_timeout(TYPED)
    room.settle()
    assert room.desk.manuscript.text == "One day, a fox"
    room.check_all()


@pytest.mark.parametrize("other", ["abd", "ab", "xyabc"])
def test_two_pages_that_type_at_once_end_with_the_same_text(room, other):
    """The change of the second comes to the first one while its own is on its way."""
    room.type(0, "abc")
    room.settle()
    room.type(0, "xabc", wait=False)
    room.type(1, other)
    messages = [room.sent(0), room.sent(1)]
    room.handle(messages[1])
    list(room.hand_on())
    assert room.seen(0)[0] == "xabc"
    room.handle(messages[0])
    room.settle()
    room.check_all()


def test_a_page_that_missed_a_message_asks_for_all(room, writes):
    room.type(0, "One day")
    room.handle(room.sent(0))
    list(room.hand_on(only=[0]))
    room.settle()
    assert room.seen(1)[0] == ""
    room.type(0, "One day in May")
    room.settle()
    room.check_all()


def test_a_page_that_is_connected_again_has_lost_nothing(room, writes):
    writes(["A dog", " ran."])
    room.press(0, "Write")
    room.handle(room.sent(0))
    list(room.hand_on(only=[0]))
    room.type(1, "x", wait=False)
    room.browser_page.evaluate("pages[1].model.heard['comm_live_update']()")
    room.settle()
    room.check_all()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_pages_do_at_once_they_end_with_the_same(room, writes, seed):
    chance = random.Random(seed)
    writes([" A dog", " ran."], "limit")
    for _ in range(25):
        number = chance.randrange(room.count)
        if chance.random() < 0.5 and not room.seen(number)[4]:
            old = room.seen(number)[0]
            at = chance.randrange(len(old) + 1)
            room.type(number, old[:at] + chance.choice(["x", "😀 ", "fox"]) + old[at:], False)
        elif chance.random() < 0.5:
            room.press(number, chance.choice(["Undo", "Redo", "Retry", "New story"]))
        elif room.count < 4 and chance.random() < 0.2:
            room.open()
        if chance.random() < 0.5:
            room.handle(room.sent(chance.randrange(room.count)))
        if chance.random() < 0.5:
            list(room.hand_on())
    room.browser_page.wait_for_timeout(TYPED)
    room.settle()
    room.check_all()
