"""Take the README's pictures of the studio and of the training page, with a trained checkpoint.

    python docs/make_screenshots.py [CHECKPOINT_FOLDER]

It needs Debian's chromium, and writes studio-*.png and training.png beside itself.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests")]

from test_browser import CHROMIUM, FLAGS, press, serving, story, wait_for  # noqa: E402

TRAINING = """
import sys
sys.path.insert(0, "..")
import golpo_utils as golpo
golpo.show_training("../gpt_checkpoints")
"""


def tell(page, title=""):
    page.get_by_placeholder("or none").fill(title)
    press(page, "Tell")
    wait_for(lambda: "tokens/s" in story(page) and page.get_by_text("telling …").count() == 0)
    page.wait_for_timeout(500)


def main(checkpoints=DOCS.parent / "gpt_checkpoints"):
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        project = Path(folder) / "project"
        shutil.copytree(DOCS.parent / "notebooks", project / "notebooks")
        shutil.copy(DOCS.parent / "golpo_utils.py", project)
        shutil.copytree(checkpoints, project / "gpt_checkpoints")
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING)])
        nbformat.write(notebook, project / "notebooks/page.ipynb")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1160, "height": 2600})
        page.set_default_timeout(120_000)
        with serving(sys.executable, project, Path(folder), "voila", "notebooks/test.ipynb") as address:
            page.goto(address)
            page.get_by_placeholder("Once upon a time").fill("Once upon a time, in a")
            page.get_by_text("For the curious").click()
            page.locator(".golpo .bar").first.wait_for()
            page.wait_for_timeout(1000)
            page.locator(".golpo .widget-accordion").screenshot(path=DOCS / "studio-curious.png")
            page.goto(address)
            press(page, "careful")
            tell(page)
            page.locator(".golpo").screenshot(path=DOCS / "studio-light.png")
            page.goto(f"{address}?theme=dark")
            press(page, "2")
            tell(page, title="The Ghost in the Mill")
            page.locator(".golpo").screenshot(path=DOCS / "studio-dark.png")
        with serving(sys.executable, project, Path(folder), "voila", "notebooks/page.ipynb") as address:
            page.goto(address)
            page.get_by_text("validation loss").wait_for()
            page.wait_for_timeout(1000)
            page.screenshot(path=DOCS / "training.png", clip={"x": 0, "y": 0, "width": 1060, "height": 450})
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
