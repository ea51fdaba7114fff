"""Take the README's pictures of the studio and of the training page, with a trained model.

    python docs/make_screenshots.py [CHECKPOINT_FOLDER]

It needs Debian's chromium, and writes studio-*.png and training.png beside itself. Without a
checkpoint the bundled model writes, and training.png stays as it is.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests")]

from test_browser import CHROMIUM, FLAGS, press, serving  # noqa: E402

TRAINING = """
import sys
sys.path.insert(0, "..")
import golpo
golpo.show_training("../gpt_checkpoints")
"""


def write_story(page, opening: str = "") -> None:
    """Write a story to its end."""
    page.get_by_label("Story", exact=True).fill(opening)
    press(page, "Write")
    page.get_by_role("button", name="Continue", exact=True).wait_for()
    page.wait_for_timeout(500)


def picture(page, name: str) -> None:
    """Take a picture of the studio."""
    page.locator(".golpo").screenshot(path=DOCS / f"studio-{name}.png")


def show_the_desk(page, address: str) -> None:
    """The studio light and dark, wide and on a phone, with ways on and with other words."""
    page.goto(address)
    write_story(page, "Once upon a time, in a small house by the sea,")
    picture(page, "light")
    press(page, "New story")
    page.get_by_label("max tokens", exact=True).fill("60")  # ways on from the midst of a story
    write_story(page, "One night a small owl knocked at the window.")
    press(page, "Three ways on")
    page.get_by_role("button", name="I like way 3").wait_for()
    picture(page, "ways")
    press(page, "Close the ways")
    page.get_by_label("Story", exact=True).press("ArrowLeft")
    page.keyboard.press("Alt+Enter")  # the last word
    page.locator(".golpo .word button").first.wait_for()
    picture(page, "words")
    page.set_viewport_size({"width": 390, "height": 1400})
    page.goto(address)
    page.get_by_label("Story", exact=True).wait_for()
    write_story(page)
    picture(page, "phone")
    page.set_viewport_size({"width": 1160, "height": 2600})
    page.goto(f"{address}?theme=dark")
    page.get_by_label("Title").fill("The Ghost in the Mill")
    write_story(page)
    page.get_by_label("Shade surprising words").check()
    page.locator(".golpo .shaded").wait_for()
    picture(page, "dark")


def show_the_training(page, project: Path, home: Path) -> None:
    """The page of a training that is over."""
    with serving(sys.executable, project, home, "voila", "notebooks/page.ipynb") as address:
        page.goto(address)
        page.get_by_text("validation loss").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(
            path=DOCS / "training.png", clip={"x": 0, "y": 0, "width": 1060, "height": 450}
        )


def main(checkpoints: str | Path = DOCS.parent / "gpt_checkpoints") -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        project = Path(folder) / "project"
        shutil.copytree(DOCS.parent / "notebooks", project / "notebooks")
        for name in ("golpo_utils.py", "requirements-colab.txt"):
            shutil.copy(DOCS.parent / name, project)
        for name in ("golpo", "voice"):
            shutil.copytree(DOCS.parent / name, project / name)
        shutil.copytree(checkpoints, project / "gpt_checkpoints")
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING)])
        nbformat.write(notebook, project / "notebooks/page.ipynb")
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1160, "height": 2600})
        page.set_default_timeout(120_000)
        with serving(
            sys.executable, project, Path(folder), "voila", "notebooks/test.ipynb"
        ) as address:
            show_the_desk(page, address)
        if (project / "gpt_checkpoints" / "metrics.jsonl").exists():
            show_the_training(page, project, Path(folder))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
