"""The studio in a real browser: test.ipynb in JupyterLab and in Voilà, with headless Chromium.

The packages are those installed here and, with the marker slow, also Colab's: ipywidgets 7.7.1 on
ipykernel 6.17.1. Installing them takes a minute; GOLPO_COLAB_VENV may name an existing environment.
"""

import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from golpo.checkpoint import save_checkpoint
from golpo.paths import PROJECT_DIR
from golpo.settings import GPT_CONFIG_LAPTOP
from golpo.shelf import Shelf
from golpo.studio import SCRIPTS
from golpo.translations import page_labels
from golpo_utils import GPT2_VOCAB_SIZE, GPTModel

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is missing")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]

COLAB = [
    "ipywidgets==7.7.1",
    "ipykernel==6.17.1",
    "ipython==7.34.0",
    "jupyterlab<4",
    "notebook<7",
    "voila<0.5",
    "jupyterlab_widgets<2",
    "anywidget",
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWER_WITHIN = 20  # seconds; after so many, desk.js says that the kernel does not answer


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A copy of the project with an untrained checkpoint.

    In its vocabulary <|end|> is five tokens, so that no story ends by chance before it is stopped.
    """
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(PROJECT_DIR / "golpo_utils.py", folder)
    shutil.copy(PROJECT_DIR / "requirements-colab.txt", folder)
    shutil.copytree(PROJECT_DIR / "golpo", folder / "golpo")
    shutil.copytree(PROJECT_DIR / "notebooks", folder / "notebooks")
    model = GPTModel({**GPT_CONFIG_LAPTOP, "vocab_size": GPT2_VOCAB_SIZE, "emb_dim": 48})
    save_checkpoint(
        model, None, 0, 7, [8.5], [8.4], [100], 100, folder / "gpt_checkpoints", "checkpoint_a.pt"
    )
    return folder


@pytest.fixture(
    scope="session", params=["installed", pytest.param("colab", marks=pytest.mark.slow)]
)
def python(request, tmp_path_factory):
    """The Python that runs Jupyter: this one, or one of an environment with Colab's versions."""
    if request.param == "installed":
        return sys.executable
    folder = os.environ.get("GOLPO_COLAB_VENV")
    if folder is None:
        folder = tmp_path_factory.mktemp("colab")
        venv.create(folder, with_pip=True)
        subprocess.run(
            [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", *COLAB], check=True
        )
    # PyTorch and others come from the environment that runs the tests, after those above.
    packages = next(Path(folder).glob("lib/python*/site-packages"))
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return f"{folder}/bin/python"


@contextmanager
def serving(python, project, home, *command):
    """A Jupyter or Voilà server with a home of its own, at work → its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    own = {name: str(home) for name in names}
    with open(home / "log.txt", "wb") as log:
        server = subprocess.Popen(
            [python, "-m", *command, f"--port={port}", "--no-browser"],
            cwd=project,
            stdout=log,
            stderr=log,
            env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
        )
    try:
        wait_for(
            lambda: (
                server.poll() is not None or socket.socket().connect_ex(("127.0.0.1", port)) == 0
            )
        )
        assert server.poll() is None, (home / "log.txt").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(condition, seconds=60):
    """Return the condition's first true value; fail if it has none for so long."""
    for _ in range(20 * seconds):
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(
        f"waited {seconds} seconds in vain for {inspect.getsource(condition).strip()}"
    )


@pytest.fixture(scope="module")  # its event loop must be gone before the next file's tests
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1300, "height": 2600})
    page.set_default_timeout(60_000)
    yield page
    page.close()


def wait_for_the_studio(page):
    """The notebook generates stories before its studio appears: minutes on a busy machine."""
    page.get_by_role("button", name="Write", exact=True).wait_for(timeout=240_000)


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def choose(page, menu, item):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(f".lm-Menu-itemLabel:text-is('{item}')").click()


def story(page):
    """The text of the story on the page."""
    return page.get_by_label("Story", exact=True).input_value()


def state(page):
    """What the page says that the model does."""
    return page.locator(".golpo .state").inner_text()


def write_and_see_it_grow(page, button="Write"):
    """Press a button that writes; return once the story has grown five times."""
    press(page, button)
    wait_for(lambda: "Writing" in state(page))
    for _ in range(5):
        length = len(story(page))
        wait_for(lambda length=length: len(story(page)) > length)


def stop(page):
    """Press Stop; the page must answer soon, and the story stays as it is."""
    press(page, "Stop")
    wait_for(lambda: "Writing" not in state(page), seconds=ANSWER_WITHIN)
    assert "Stopped" in state(page), state(page)
    text = story(page)
    time.sleep(0.3)
    assert story(page) == text
    return text


def kept(project):
    """The texts of the stories that are kept as files."""
    return [found.text for found in Shelf(project / "output").stories()]


def play(page, project):
    """Write, stop, edit, continue, retry, undo and redo."""
    slider = page.get_by_label("temperature", exact=True)
    slider.press("ArrowRight")
    assert slider.input_value() == "0.95"
    page.get_by_label("max tokens", exact=True).press("End")
    page.get_by_label("Title").fill("The <b>Mill</b>")
    page.get_by_label("Story", exact=True).fill("One day, a 😀 fox")
    write_and_see_it_grow(page)
    first = stop(page)
    assert first.startswith("One day, a 😀 fox") and len(first) > 30
    wait_for(lambda: first in kept(project), seconds=ANSWER_WITHIN)
    page.get_by_label("Story", exact=True).fill("One day, a red 😀 fox ran.")
    write_and_see_it_grow(page, "Continue")
    second = stop(page)
    assert second.startswith("One day, a red 😀 fox ran.")
    write_and_see_it_grow(page, "Retry")
    third = stop(page)
    assert third.startswith("One day, a red 😀 fox ran.") and third != second
    page.get_by_label("Story", exact=True).focus()
    for expected in (second, "One day, a red 😀 fox ran.", first, "One day, a 😀 fox"):
        page.keyboard.press("Control+z")
        wait_for(lambda expected=expected: story(page) == expected, seconds=ANSWER_WITHIN)
    for _ in range(4):
        press(page, "Redo")
    wait_for(lambda: story(page) == third, seconds=ANSWER_WITHIN)
    copy = page.locator(".golpo .mirror").evaluate("node => node.textContent")
    assert copy.rstrip("\u200b") == third  # the copy that shows who wrote what
    marked = page.locator(".golpo .mirror .m").evaluate_all(
        "n => n.map(x => x.textContent).join('')"
    )
    assert third.endswith(marked) and len(marked) > 10


def choose_among_words_and_ways(page):
    """Take one of three ways, and another word."""
    text = story(page)
    page.keyboard.press("Escape")
    press(page, "Three ways on")
    page.get_by_role("button", name="I like way 2").click()
    page.get_by_role("button", name="I like way 2").wait_for(state="hidden")
    way = page.locator(".golpo .ways p").nth(1).evaluate("node => node.textContent")
    page.get_by_role("button", name="Take way 2").click()
    wait_for(lambda: story(page) == text + way, seconds=ANSWER_WITHIN)
    area = page.get_by_label("Story", exact=True)
    at = len(text.encode("utf-16-le")) // 2
    area.evaluate("(node, at) => { node.focus(); node.setSelectionRange(at, at) }", at)
    page.keyboard.press("Alt+Enter")  # a click with the keyboard
    page.locator(".golpo .word button").first.click()
    wait_for(lambda: "Writing" in state(page), seconds=ANSWER_WITHIN)
    page.keyboard.press("Escape")
    wait_for(lambda: "Stopped" in state(page), seconds=ANSWER_WITHIN)
    assert story(page).startswith(text[:-20])


def export(page, tmp_path):
    """Star the story, and export it as EPUB."""
    page.get_by_role("button", name=re.compile("^Star ")).first.click()
    page.locator(".golpo .rows [aria-pressed=true]").wait_for()
    with page.expect_download() as download:
        press(page, "Export this story")
    path = tmp_path / "book.epub"
    download.value.save_as(path)
    title = "The <b>Mill</b>"
    assert pytest.importorskip("ebooklib.epub").read_epub(path).title == title
    assert download.value.suggested_filename.endswith(".epub")


def serious_faults(page, tmp_path):
    """What axe-core finds on the page; None if npm does not have it."""
    npm = shutil.which("npm")
    command = [npm, "pack", "--silent", "axe-core"]
    if not npm or subprocess.run(command, cwd=tmp_path, capture_output=True).returncode:
        return None
    with tarfile.open(next(tmp_path.glob("axe-core-*.tgz"))) as archive:
        source = archive.extractfile("package/axe.min.js").read().decode()
    page.evaluate(source)
    result = page.evaluate("axe.run(document.querySelector('.golpo'))")
    return [
        (fault["id"], fault["nodes"][0]["html"])
        for fault in result["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


@contextmanager
def jupyterlab(python, project, home):
    """A JupyterLab server at work → its address."""
    settings = home / "lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    # Otherwise cells out of sight are not on the page at all.
    settings.write_text('{"windowingMode": "none"}')
    options = ("--ServerApp.token=", "--ServerApp.password=", "--allow-root")
    with serving(python, project, home, "jupyterlab", *options) as address:
        yield address


def open_notebook(page, address, name):
    """Open a notebook in JupyterLab; its kernel is idle then."""
    page.goto(f"{address}/doc/workspaces/t1/tree/notebooks/{name}?reset")
    page.get_by_text("| Idle").wait_for()  # in the status line: the kernel has answered


def test_the_studio_works_in_jupyterlab(python, project, page, tmp_path):
    with jupyterlab(python, project, tmp_path) as address:
        open_notebook(page, address, "test.ipynb")
        choose(page, "Run", "Run All Cells")
        wait_for_the_studio(page)
        play(page, project)
        choose_among_words_and_ways(page)
        export(page, tmp_path)
        write_and_see_it_grow(page, "Continue")
        choose(page, "Kernel", "Interrupt Kernel")
        wait_for(lambda: "Stopped" in state(page), seconds=ANSWER_WITHIN)
        text = story(page)
    assert text in kept(project)


def test_the_studio_works_in_voila(python, project, page, tmp_path):
    command = ["voila", "notebooks/test.ipynb", "--show_tracebacks=True"]
    if python != sys.executable:
        command.append("--enable_nbextensions=True")  # else Voilà 0.4 loads anywidget from a CDN
    with serving(python, project, tmp_path, *command) as address:
        page.goto(address)
        wait_for_the_studio(page)
        play(page, project)
        text = story(page)
        faults = serious_faults(page, tmp_path)
        page.set_viewport_size({"width": 390, "height": 844})
        width = page.locator(".golpo").evaluate("node => node.scrollWidth - node.clientWidth")
        assert width == 0, "something is wider than a phone"
        page.reload()  # a new kernel
        wait_for_the_studio(page)
        page.locator(".golpo summary", has_text="Shelf").click()  # folded on a phone
        page.locator(".golpo .rows .link").first.click()
        wait_for(lambda: story(page) == text, seconds=ANSWER_WITHIN)
        assert page.get_by_label("Title").input_value() == "The <b>Mill</b>"
    if faults is None:
        pytest.skip("everything but axe-core was tried: npm does not have it")
    assert not faults


# What happens to a page. Two studios stand in one notebook, and the cases share it.

CELLS = [
    """
import os, sys
from pathlib import Path
Path("../kernel").write_text(str(os.getpid()))
sys.path.insert(0, "..")
import golpo
model, tokenizer, about = golpo.load_storyteller("../gpt_checkpoints")
""",
    'golpo.story_studio(model, tokenizer, "../output")',
    'golpo.story_studio(model, tokenizer, "../output")',
]


class Notebook:
    """A page of JupyterLab with a notebook that has two studios."""

    def __init__(self, page, project):
        self.page = page
        self.project = project
        self.studios = [
            page.locator(".jp-OutputArea-child", has=page.locator(".golpo")).nth(n)
            for n in range(2)
        ]

    def run(self):
        """Run all cells; return once both studios can be used."""
        choose(self.page, "Run", "Run All Cells")
        self.wait()

    def wait(self):
        for studio in self.studios:
            wait_for(lambda studio=studio: "Ready" in state(studio))


def test_the_story_is_never_translated(page):
    """Words of a story that are also labels of the page stay as they are, in each kind of span."""
    page.set_content("<title>Desk</title>")
    page.add_script_tag(content=SCRIPTS[0].read_text(encoding="utf-8"))
    shown = page.evaluate(
        """labels_of_the_page => {
            labels = labels_of_the_page;
            const paper = new Paper(() => {}, () => {});
            const mirror = (text, marks, bits, found) => {
                paper.known = { text, marks };
                paper.settle();
                Object.assign(paper, { bits, found });
                paper.draw();
                return paper.mirror.textContent;
            };
            const whole = mirror("Stop", [[1, 4]], [], null);
            const shaded = mirror("She said Stop.", [[1, 14]], [[9, 3], [4, 2], [1, 1]], null);
            const found = mirror("🦊 Title", [[0, 7]], [], [2, 7]);
            return [whole, shaded, found, h("button", {}, "Stop").textContent];
        }""",
        page_labels("bn"),
    )
    assert shown[:3] == ["Stop\u200b", "She said Stop.\u200b", "🦊 Title\u200b"]
    assert shown[3] == page_labels("bn")["Stop"]


@pytest.fixture(scope="module")
def notebook(python, project, browser, tmp_path_factory):
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    two = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(two, project / "notebooks/two.ipynb")
    page = browser.new_page(viewport={"width": 1300, "height": 2600})
    page.set_default_timeout(60_000)
    with jupyterlab(python, project, tmp_path_factory.mktemp("two")) as address:
        open_notebook(page, address, "two.ipynb")
        notebook = Notebook(page, project)
        notebook.run()
        yield notebook
        page.close()


def begin_story(studio, opening):
    """Write a story in a studio, and go on writing."""
    press(studio, "New story")
    studio.get_by_label("Story", exact=True).fill(opening)
    studio.get_by_label("max tokens", exact=True).press("End")
    write_and_see_it_grow(studio)


def test_two_studios_in_one_notebook_have_texts_of_their_own(notebook):
    first, second = notebook.studios
    begin_story(first, "A fox ran.")
    begin_story(second, "An owl slept.")
    wait_for(lambda: len(story(first)) > 60 and len(story(second)) > 60)
    assert "Writing" in state(first), "the second stopped the first"
    texts = [stop(first), stop(second)]
    assert texts[0].startswith("A fox ran.") and texts[1].startswith("An owl slept.")
    press(second, "Undo")
    wait_for(lambda: story(second) == "An owl slept.")
    assert story(first) == texts[0]
    wait_for(lambda: {texts[0], "An owl slept."} <= set(kept(notebook.project)))


def test_until_the_kernel_has_begun_a_new_story_the_page_takes_no_typing(notebook):
    """It would be lost when the new story comes."""
    studio = notebook.studios[0]
    studio.get_by_label("Story", exact=True).fill("An old story.")
    read_only = studio.locator(".golpo").evaluate(
        """desk => {
          [...desk.querySelectorAll("button")].find((b) => b.textContent === "New story").click();
          return desk.querySelector(".paper textarea").readOnly;
        }"""
    )
    assert read_only
    studio.get_by_label("Story", exact=True).fill("A new story.")  # it waits until that can be
    wait_for(lambda: {"An old story.", "A new story."} <= set(kept(notebook.project)))


def test_typing_goes_on_in_the_title_and_puts_other_words_away(notebook):
    studio = notebook.studios[1]
    begin_story(studio, "Once upon a time")
    stop(studio)
    title = studio.get_by_label("Title", exact=True)
    for part in ("The ", "Fox"):
        title.press_sequentially(part)
        wait_for(lambda part=part: any(part.strip() in found for found in titles(notebook)))
        time.sleep(0.5)  # until the page has the answer
    assert title.input_value() == "The Fox"
    area = studio.get_by_label("Story", exact=True)
    area.press("ArrowLeft")
    area.press("Alt+Enter")
    words = studio.locator(".golpo .word")
    words.locator("button").first.wait_for()
    area.press("x")
    words.wait_for(state="hidden")


def titles(notebook):
    """Those of the stories that are kept as files."""
    return [found.title for found in Shelf(notebook.project / "output").stories()]


NOTE_FIRST_STATE = """
new MutationObserver(() => {
  const area = document.querySelector(".golpo .paper textarea");
  if (area) window.readOnlyAtFirst ??= area.readOnly;
}).observe(document, { childList: true, subtree: true });
"""


def test_a_page_that_is_loaded_again_shows_the_story_as_it_grows(notebook):
    studio = notebook.studios[0]
    begin_story(studio, "A mill stood.")
    text = story(studio)
    choose(notebook.page, "File", "Save Notebook")
    notebook.page.add_init_script(NOTE_FIRST_STATE)
    notebook.page.reload()
    wait_for(lambda: "Writing" in state(studio))
    # What is typed before the story is there would be lost.
    assert notebook.page.evaluate("readOnlyAtFirst") is True
    seen = story(studio)
    assert seen.startswith(text)
    wait_for(lambda: len(story(studio)) > len(seen))
    text = stop(studio)
    wait_for(lambda: text in kept(notebook.project))


def test_the_preset_exact_offers_beams(notebook):
    studio = notebook.studios[1]
    beams = studio.get_by_label("Beams")
    press(studio, "New story")
    press(studio, "balanced")
    assert not beams.is_visible()
    press(studio, "exact")
    beams.select_option("8")
    studio.get_by_label("max tokens", exact=True).press("Home")
    studio.get_by_label("Story", exact=True).fill("A door opened.")
    press(studio, "Write")
    wait_for(lambda: "max tokens reached · 10 tokens" in state(studio))
    text = story(studio)
    assert text.startswith("A door opened.") and len(text) > 14
    studio.get_by_label("max tokens", exact=True).press("End")
    press(studio, "Continue")
    wait_for(lambda: re.search(r"Writing · \d+ tokens", state(studio)))
    assert stop(studio) == text
    press(studio, "balanced")
    assert not beams.is_visible()


# Run in the page: the number of controls, and what is cut off, must be scrolled sideways, or
# stays over more than half of the window.
CUT_OFF = """desk => {
  const side = (node) => node.scrollWidth > node.clientWidth + 1;
  const frame = desk.getBoundingClientRect();
  const page = document.documentElement.clientWidth;
  const outside = ({ left, right }) =>
    left < frame.left - 1 || right > Math.min(frame.right, page) + 1;
  const controls = [...desk.querySelectorAll("button, input, select, textarea, summary, output")]
    .filter((node) => node.offsetParent);
  const faults = controls.filter((node) => outside(node.getBoundingClientRect())
    || (node.matches("button, select, summary") && side(node)));
  const wide = [desk, ...desk.querySelectorAll("div:not(.heard), section, ul, p")].filter(side);
  for (let node = desk.parentElement; node; node = node.parentElement) {
    if (side(node) && getComputedStyle(node).overflowX !== "visible") wide.push(node);
  }
  const foot = desk.querySelector(".foot");
  const low = foot.clientHeight > window.innerHeight / 2;
  if (low && getComputedStyle(foot).position === "sticky") wide.push(foot);
  return [controls.length, [...faults, ...wide].map((node) => node.outerHTML.slice(0, 200))];
}"""


@pytest.mark.parametrize("zoom", ["page", "text"])
def test_at_200_percent_no_control_is_cut_off(notebook, zoom):
    studio = notebook.studios[0]
    desk = studio.locator(".golpo")
    begin_story(studio, "Once upon a time")
    stop(studio)
    press(studio, "Three ways on")
    wait_for(lambda: studio.get_by_role("button", name="Take way 3").is_enabled())
    area = studio.get_by_label("Story", exact=True)
    area.press("ArrowLeft")
    area.press("Alt+Enter")
    studio.locator(".golpo .word button").first.wait_for()
    desk.evaluate("node => node.querySelectorAll('details').forEach(part => part.open = true)")
    try:
        if zoom == "page":
            notebook.page.set_viewport_size({"width": 650, "height": 500})
        else:
            notebook.page.evaluate("document.documentElement.style.fontSize = '200%'")
        count, faults = desk.evaluate(CUT_OFF)
    finally:
        notebook.page.set_viewport_size({"width": 1300, "height": 2600})
        notebook.page.evaluate("document.documentElement.style.fontSize = ''")
    assert count > 40 and not faults


def check_that_nothing_is_lost(notebook, end_kernel):
    """End the kernel while the model writes; the page says so, and the shelf has the story."""
    studio = notebook.studios[0]
    begin_story(studio, "A lamp burned.")
    text = wait_for(lambda: next((t for t in kept(notebook.project) if "A lamp" in t), None))
    end_kernel()
    message = studio.locator(".message")
    wait_for(lambda: "does not answer" in message.inner_text(), seconds=90)
    assert "Writing" not in state(studio)
    assert story(studio).startswith(text)
    assert not studio.get_by_label("Story", exact=True).is_editable()
    notebook.run()
    studio.locator(".golpo .rows .link", has_text="A lamp burned.").first.click()
    wait_for(lambda: story(studio).startswith(text))
    press(studio, "New story")
    studio.get_by_label("Story", exact=True).fill("The lamp went out.")
    wait_for(lambda: "The lamp went out." in kept(notebook.project))


def test_after_a_restart_of_the_kernel_the_page_says_so_and_the_shelf_has_the_story(notebook):
    def restart():
        choose(notebook.page, "Kernel", "Restart Kernel…")
        notebook.page.locator(".jp-Dialog .jp-mod-accept").click()

    check_that_nothing_is_lost(notebook, restart)


@pytest.mark.slow
def test_after_a_kill_of_the_kernel_the_page_says_so_and_the_shelf_has_the_story(notebook):
    def kill():
        os.kill(int((notebook.project / "kernel").read_text()), signal.SIGKILL)
        notebook.page.locator(".jp-Dialog .jp-mod-accept").click()  # JupyterLab says so, too

    check_that_nothing_is_lost(notebook, kill)
