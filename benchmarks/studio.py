"""How fast the studio answers in a browser: bytes sent, the first word, Stop, and freezes.

    python benchmarks/studio.py [--tokens 2000]

The bundled model writes in Voilà, in headless Chromium (Debian's; Playwright drives it). A story
that ends is continued until so many tokens are written.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import nbformat  # noqa: E402
from machine import print_machine  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402
from test_browser import CHROMIUM, FLAGS, press, serving, story  # noqa: E402

NOTEBOOK = """
import sys
sys.path.insert(0, {project!r})
import golpo
model, tokenizer, about = golpo.load_storyteller("bundled", "cpu")
golpo.story_studio(model, tokenizer, {output!r}, about=about)
"""
# Seconds from a click until the page has changed as `done` says.
CLICK = """([name, done]) => new Promise((resolve) => {
    const started = performance.now();
    const look = new Function("return " + done);
    const wait = () => look() ? resolve((performance.now() - started) / 1000) : setTimeout(wait, 2);
    [...document.querySelectorAll(".golpo button")].find((b) => b.textContent === name).click();
    wait();
})"""
WATCH = """() => {
    window.freezes = [];
    new PerformanceObserver((list) => window.freezes.push(
        ...list.getEntries().map((entry) => entry.duration))).observe({ type: "longtask" });
}"""
TEXT = "document.querySelector('.golpo textarea[aria-label=Story]').value"
WRITING = "document.querySelector('.golpo').dataset.state === 'writing'"


class Traffic:
    """What the kernel sends to the page: all bytes of its frames, and those of the messages."""

    def __init__(self, page):
        self.frames = self.content = self.words = self.count_of_frames = 0
        page.on("websocket", lambda socket: socket.on("framereceived", self.count))

    def count(self, payload: str | bytes) -> None:
        frame = payload.encode() if isinstance(payload, str) else payload
        self.frames += len(frame)
        self.count_of_frames += 1
        for found in re.finditer(rb'"method": ?"custom", ?"content": ?(\{.*?\})\}', frame):
            self.content += len(found[1])
            self.words += len(found[1]) if found[1].startswith(b'{"+"') else 0


def tokens_written(page) -> int:
    """How many tokens the last passage has."""
    found = re.search(r"(\d+) tokens", page.locator(".golpo .state").inner_text())
    return int(found[1]) if found else 0


def measure(page, tokens: int) -> None:
    """Write with the page, and print a row for each figure."""
    traffic = Traffic(page)
    page.reload()
    page.get_by_role("button", name="Write", exact=True).wait_for()
    page.evaluate(WATCH)
    page.get_by_label("max tokens", exact=True).fill("2000")
    page.wait_for_timeout(1000)
    traffic.frames = traffic.content = traffic.words = traffic.count_of_frames = 0
    first = page.evaluate(CLICK, ["Write", f"{TEXT} !== ''"])
    written = 0
    while True:
        page.wait_for_function(f"!({WRITING})", timeout=300_000)
        page.wait_for_timeout(300)
        written += tokens_written(page)
        if written >= tokens:
            break
        press(page, "Continue")
        page.wait_for_function(WRITING)
    size = len(story(page).encode())
    print(f"| first word after the click | {first:.2f} s |")
    print(f"| text of {written:,} tokens | {size:,} bytes |")
    words = f"{traffic.words:,} bytes, {traffic.words / size:.1f} times"
    print(f"| messages with its words | {words} |")
    print(f"| all messages | {traffic.content:,} bytes, {traffic.content / size:.1f} times |")
    envelopes = f"{traffic.frames:,} bytes in {traffic.count_of_frames} frames"
    print(f"| with Jupyter's envelopes | {envelopes} |")
    press(page, "Continue")
    page.wait_for_function(WRITING)
    before = page.evaluate(f"{WRITING}")
    stop = page.evaluate(CLICK, ["Stop", f"!({WRITING})"])
    print(f"| Stop{'' if before else ' (the story had ended)'} | {stop:.2f} s |")
    press(page, "New story")
    page.get_by_label("How many").select_option("4")
    page.evaluate("window.freezes.length = 0")
    press(page, "Write side by side")
    page.get_by_role("button", name="I like way 4").wait_for(timeout=300_000)
    longest = max([*page.evaluate("window.freezes"), 0])
    print(f"| longest freeze of the page, four stories at once | {longest:.0f} ms |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=2000)
    arguments = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        home = Path(folder)
        code = NOTEBOOK.format(project=str(PROJECT), output=str(home / "output"))
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        nbformat.write(notebook, home / "desk.ipynb")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.set_default_timeout(120_000)
        with serving(sys.executable, home, home, "voila", "desk.ipynb") as address:
            page.goto(address)
            measure(page, arguments.tokens)
        browser.close()


if __name__ == "__main__":
    main()
