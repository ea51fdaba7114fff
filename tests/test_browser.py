"""The studio in a real browser: test.ipynb in JupyterLab and in Voilà, played by a headless Chromium.

With the packages installed here, and with --long also in an environment like Colab's: ipywidgets 7.7.1
on ipykernel 6.17.1. Making that takes a minute; GOLPO_COLAB_VENV may name one that stands already.
"""

import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from contextlib import contextmanager
from pathlib import Path

import pytest

import golpo_utils as golpo

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is missing")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser is missing: apt-get install chromium")

COLAB = ["ipywidgets==7.7.1", "ipykernel==6.17.1", "ipython==7.34.0", "jupyterlab<4", "notebook<7", "voila<0.5",
         "jupyterlab_widgets<2"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A copy of the project with an untrained checkpoint: in its vocabulary <|end|> falls apart into five tokens,
    so that by chance no story ends before somebody stops it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(golpo.__file__, folder)
    shutil.copytree(golpo.PROJECT / "notebooks", folder / "notebooks")
    model = golpo.GPTModel({**golpo.GPT_CONFIG_LAPTOP, "vocab_size": golpo.GPT2_VOCAB_SIZE, "emb_dim": 48})
    golpo.save_checkpoint(model, None, 0, 7, [8.5], [8.4], [100], 100, folder / "gpt_checkpoints", "checkpoint_a.pt")
    return folder


@pytest.fixture(scope="session", params=["installed", "colab"])
def python(request, tmp_path_factory):
    """The Python that runs Jupyter: this one, or one of an environment with Colab's versions."""
    if request.param == "installed":
        return sys.executable
    folder = os.environ.get("GOLPO_COLAB_VENV")
    if folder is None:
        if not request.config.getoption("--long"):
            pytest.skip("Colab's versions are tried with --long, or where GOLPO_COLAB_VENV names an environment")
        folder = tmp_path_factory.mktemp("colab")
        venv.create(folder, with_pip=True)
        subprocess.run([f"{folder}/bin/python", "-m", "pip", "install", "--quiet", *COLAB], check=True)
    # PyTorch and its like come from the environment that runs the tests; what was installed above goes first.
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
        server = subprocess.Popen([python, "-m", *command, f"--port={port}", "--no-browser"], cwd=project, stdout=log,
                                  stderr=log, env={**os.environ, **own, "OMP_NUM_THREADS": "1"})
    try:
        wait_for(lambda: server.poll() is not None or socket.socket().connect_ex(("127.0.0.1", port)) == 0)
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
    raise AssertionError(f"waited {seconds} seconds in vain for {inspect.getsource(condition).strip()}")


@pytest.fixture(scope="module")          # its event loop must be gone before the next file's tests
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


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def choose(page, menu, item):
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(f".lm-Menu-itemLabel:text-is('{item}')").click()


def story(page):
    """What the page shows of the story, with its progress line; "" before there is one."""
    return page.evaluate("document.querySelector('.golpo article')?.innerText ?? ''")


def move(page, slider, key):
    """Press a key on a slider's handle → what the slider shows then."""
    row = page.locator(".golpo .setting").filter(has_text=slider)
    row.locator(".noUi-handle, .ui-slider-handle").press(key)
    return row.locator(".widget-readout").inner_text()


def tell_and_see_it_arrive(page):
    """Press Tell; return once the story was seen to grow five times."""
    press(page, "Tell")
    wait_for(lambda: "telling" in story(page))
    for _ in range(5):
        length = len(story(page))
        wait_for(lambda: len(story(page)) > length)


def play(page, project):
    """Move a slider, tell, stop in the middle, save, and find the file."""
    assert move(page, "temperature", "ArrowRight") == "0.85"
    assert move(page, "max tokens", "End") == "2000"
    tell_and_see_it_arrive(page)
    press(page, "Stop")
    wait_for(lambda: "tokens/s · stopped" in story(page), seconds=5)
    told = story(page)
    assert 5 < int(re.search(r"(\d+) tokens ·", told)[1]) < 1900
    time.sleep(0.5)
    assert story(page) == told
    press(page, "Save")
    page.get_by_text("Saved as").wait_for()
    [file] = (project / "output").glob("output_no_*_0.85_50_2000.txt")
    prose = page.evaluate("[...document.querySelectorAll('.golpo article p')].map(p => p.innerText).join(' ')")
    assert "".join(prose.split()) in "".join(file.read_text(encoding="utf-8").split())
    file.unlink()


def test_the_studio_plays_in_jupyterlab(python, project, page, tmp_path):
    settings = tmp_path / "lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')          # else cells out of sight are not on the page at all
    options = ("--ServerApp.token=", "--ServerApp.password=", "--allow-root")
    with serving(python, project, tmp_path, "jupyterlab", *options) as address:
        page.goto(f"{address}/doc/workspaces/t1/tree/notebooks/test.ipynb?reset")
        page.get_by_text("| Idle").wait_for()                    # in the status line: the kernel has answered
        choose(page, "Run", "Run All Cells")
        page.get_by_role("button", name="Tell", exact=True).wait_for()
        play(page, project)
        tell_and_see_it_arrive(page)
        choose(page, "Kernel", "Interrupt Kernel")
        wait_for(lambda: "tokens/s · stopped" in story(page), seconds=5)


def test_the_studio_plays_in_voila(python, project, page, tmp_path):
    with serving(python, project, tmp_path, "voila", "notebooks/test.ipynb", "--show_tracebacks=True") as address:
        page.goto(address)
        page.get_by_role("button", name="Tell", exact=True).wait_for()
        play(page, project)
