"""Both notebooks, run from top to bottom in fresh kernels: as on a laptop, and as on Colab."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))

FAKE_DRIVE = '''
from pathlib import Path
def mount(mount_point, force_remount=False):
    (Path(mount_point) / "MyDrive").mkdir(parents=True, exist_ok=True)
    print("Mounted at", mount_point)
def flush_and_unmount():
    print("Flushed")
'''


@pytest.fixture
def project(tmp_path):
    """A copy of the project with a short corpus, so that training takes seconds."""
    for name in ("golpo_utils.py", "notebooks", "data", "voice"):
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    corpus = tmp_path / "data" / "training_data.txt"
    stories = re.findall(r"<\|start\|>.*?<\|end\|>\n", corpus.read_text(encoding="utf-8"), re.DOTALL)
    corpus.write_text("\n".join(stories[:80]), encoding="utf-8")
    return tmp_path


def run(project, name, **edits):
    """Execute a notebook, with some settings edited as a person would; return its printed text."""
    notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
    for old, new in edits.items():
        cells = [cell for cell in notebook.cells if re.search(rf"^{old} = ", cell.source, re.MULTILINE)]
        assert len(cells) == 1, f"{name}.ipynb has no setting {old}"
        cells[0].source = re.sub(rf"^{old} = [^#\n]*", f"{old} = {new}  ", cells[0].source, flags=re.MULTILINE)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(project / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    return text, outputs


def test_on_a_laptop_train_then_train_again_then_tell(project):
    text, outputs = run(project, "train", num_epochs=1)
    assert "NO GPU HERE" in text and "Starting fresh." in text
    assert any("image/png" in output.get("data", {}) for output in outputs), "no curve was drawn"
    assert (project / "output" / "loss-plot.png").stat().st_size > 5000

    text, _ = run(project, "train", num_epochs=2)
    assert "Going on from checkpoint_" in text and "Starting fresh" not in text

    text, outputs = run(project, "test")
    assert re.search(r"checkpoint_[ab]\.pt, step \d+", text)
    stories = sorted((project / "output").glob("output_no_*.txt"))
    assert len(stories) == 3 and all(max(map(len, story.read_text().splitlines())) <= 80 for story in stories)
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs), "no studio"


def test_before_any_training_the_voice_in_the_box_tells_and_says_what_it_is(project):
    text, _ = run(project, "test")
    assert "THIS IS THE VOICE IN THE BOX" in text and "voice, step" in text
    stories = sorted((project / "output").glob("output_no_*.txt"))
    assert len(stories) == 3 and all(len(story.read_text(encoding="utf-8").split()) > 50 for story in stories)


def test_on_colab_checkpoints_go_to_drive_and_the_second_session_resumes(project, tmp_path, monkeypatch):
    package = tmp_path / "site" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "drive.py").write_text(FAKE_DRIVE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    drive = tmp_path / "drive"
    mounted = f"golpo.open_storage(mount_point={str(drive)!r})"

    text, _ = run(project, "train", num_epochs=1, storage=mounted)
    assert "Mounted at" in text and "Starting fresh." in text and "Flushed" in text
    home = drive / "MyDrive" / "Golpo-Kothok-GPT"
    assert json.loads((home / "gpt_checkpoints" / "checkpoint_best.json").read_text())["size"] > 0

    shutil.rmtree(project / "gpt_checkpoints", ignore_errors=True)      # a new session has only what Drive has
    text, _ = run(project, "train", num_epochs=2, storage=mounted)
    assert "Going on from checkpoint_" in text
    text, _ = run(project, "test", storage=mounted)
    assert len(list((home / "output").glob("output_no_*.txt"))) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "outputs are committed"
    assert "widgets" not in notebook.metadata
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata["colab"]["gpuType"] == "T4"
    assert not any(re.search(r"^\s*(def|class|async def) ", cell.source, re.MULTILINE) for cell in code)
    for before, cell in zip(notebook.cells, notebook.cells[1:]):
        assert cell.cell_type != "code" or before.cell_type == "markdown", f"no words above {cell.source[:40]!r}"


def test_what_the_pages_show_and_link_to_is_in_the_repository():
    """Not only on the disk of the one who wrote them: git must know each picture and file."""
    if not (PROJECT / ".git").exists():
        pytest.skip("this copy of the project is no git checkout")
    known = set(subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.splitlines())
    folders = {str(parent) for file in known for parent in Path(file).parents}
    for page in ("README.md", "benchmarks/README.md", "docs/scaling.md", "voice/README.md"):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (PROJECT / page).read_text(encoding="utf-8"))
        for link in links:
            assert os.path.normpath(os.path.join(os.path.dirname(page), link)) in known | folders, f"{link} in {page}"
