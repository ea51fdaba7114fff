"""Both notebooks, run from top to bottom in fresh kernels: as on a laptop, and as on Colab."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from standin_drive import StandInDrive, write_site_package

PROJECT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
PARTS = ("golpo_utils.py", "golpo", "notebooks", "data", "voice", "requirements-colab.txt")


@pytest.fixture
def project(tmp_path):
    """A copy of the project with a short corpus, so that training takes seconds."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in PARTS:
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    corpus = folder / "data" / "training_data.txt"
    text = corpus.read_text(encoding="utf-8")
    stories = re.findall(r"<\|start\|>.*?<\|end\|>\n", text, re.DOTALL)
    corpus.write_text("\n".join(stories[:80]), encoding="utf-8")
    return folder


def edit(notebook, name: str, value: str) -> None:
    """Change the value of a form field or a variable, as a person would."""
    cells = [cell for cell in notebook.cells if re.search(rf"^{name} = ", cell.source, re.M)]
    assert len(cells) == 1, f"the notebook sets {name} in {len(cells)} cells"
    pattern = re.compile(rf"^{name} = [^#\n]*", re.M)
    cells[0].source = pattern.sub(lambda _: f"{name} = {value}  ", cells[0].source)


def run(project: Path, name: str, **edits) -> tuple[str, list]:
    """Execute a notebook with some values edited; return its printed text and its outputs."""
    notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
    for variable, value in edits.items():
        edit(notebook, variable, str(value))
    return execute(notebook, project / "notebooks")


def execute(notebook, folder: Path) -> tuple[str, list]:
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs), outputs


def has(outputs: list, kind: str) -> bool:
    return any(kind in output.get("data", {}) for output in outputs)


# ---- On a laptop --------------------------------------------------------------------------------


def test_on_a_laptop_training_resumes_and_stories_are_generated(project):
    text, outputs = run(project, "train", num_epochs=1)
    assert "NO GPU" in text
    assert "Starting a fresh training." in text
    assert has(outputs, "image/png"), "no curve was drawn"
    assert (project / "output" / "loss-plot.png").stat().st_size > 5000

    text, _ = run(project, "train", num_epochs=2)
    assert "Resuming from checkpoint_" in text
    assert "Starting a fresh training" not in text

    text, outputs = run(project, "test")
    assert re.search(r"checkpoint_[ab]\.pt, step \d+", text)
    stories = sorted((project / "output").glob("output_no_*.txt"))
    assert len(stories) == 3
    for story in stories:
        assert max(map(len, story.read_text(encoding="utf-8").splitlines())) <= 80
    assert has(outputs, "application/vnd.jupyter.widget-view+json"), "there is no studio"


def test_before_any_training_the_bundled_model_generates_and_is_named(project):
    text, _ = run(project, "test")
    assert "THIS IS THE BUNDLED MODEL" in text
    stories = sorted((project / "output").glob("output_no_*.txt"))
    assert len(stories) == 3
    for story in stories:
        assert len(story.read_text(encoding="utf-8").split()) > 50


# ---- On Colab -----------------------------------------------------------------------------------


HOME = "Golpo-Kothok-GPT"  # the project's folder on Drive


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A stand-in Google Drive that the notebooks' kernels find as `google.colab.drive`."""
    drive = StandInDrive(tmp_path / "cloud", tmp_path / "drive")
    write_site_package(tmp_path / "site", drive)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "local disk"))
    (tmp_path / "local disk").mkdir()
    return drive


def end_session(drive, project) -> None:
    """A new session has another machine: it has only what Drive has."""
    drive.unmount()
    for folder in (project / "gpt_checkpoints", project / "output"):
        shutil.rmtree(folder, ignore_errors=True)
    local = Path(os.environ["TMPDIR"])
    shutil.rmtree(local)
    local.mkdir()


def test_on_colab_checkpoints_go_to_drive_and_the_next_session_resumes(project, drive):
    storage = f"golpo.open_storage(mount_point={str(drive.mount_point)!r})"
    text, _ = run(project, "train", num_epochs=1, storage=storage)
    assert "Mounted at" in text
    assert "Starting a fresh training." in text
    files = drive.files_on_drive()
    manifest = json.loads(files[f"{HOME}/gpt_checkpoints/checkpoint_best.json"])
    assert manifest["size"] == len(files[f"{HOME}/gpt_checkpoints/checkpoint_best.pt"])

    end_session(drive, project)
    text, _ = run(project, "train", num_epochs=2, storage=storage)
    assert "Resuming from checkpoint_" in text
    end_session(drive, project)
    run(project, "test", storage=storage)
    stories = [name for name in drive.files_on_drive() if "output_no_" in name]
    assert len(stories) == 3


# What a session's training cell begins with. On a machine with a GPU `auto` is another preset.
WITH_A_GPU = """
from golpo import settings as golpo_settings
golpo_settings.default_preset = lambda: "t4"
small = {"vocab_size": 600, "context_length": 96, "emb_dim": 48, "n_heads": 3, "n_layers": 3}
golpo_settings.PRESETS["t4"]["config"].update(small)
golpo_settings.PRESETS["t4"].update(batch_size=16)
"""
# Colab takes the machine away once Drive has a checkpoint and some steps have followed.
DROPPED = """
import os, pathlib, signal
from golpo import trainer
def train_step(self, real=trainer.Trainer.train_step):
    real(self)
    folder = pathlib.Path(storage.checkpoint_dir)
    if self.state.global_step % 7 == 6 and list(folder.glob("checkpoint_[ab].json")):
        os.kill(os.getpid(), signal.SIGKILL)
trainer.Trainer.train_step = train_step
"""


def session(project, drive, name="train", first="", before_training="", **edits) -> str:
    """Run a notebook on Colab; return what it printed, also if the machine was taken away."""
    notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
    place = f"golpo.open_storage(mount_point={str(drive.mount_point)!r})"
    for variable, value in (edits | {"storage": place}).items():
        edit(notebook, variable, str(value))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source += "\n" + first
    for cell in code:
        if "train_or_resume" in cell.source:
            cell.source = before_training + cell.source
    try:
        text, _ = execute(notebook, project / "notebooks")
    except DeadKernelError:
        outputs = [output for cell in code for output in cell.get("outputs", [])]
        return "".join(output.get("text", "") for output in outputs) + "[DROPPED]"
    return text


def step_on_drive(drive) -> int:
    """The step of the newest checkpoint that has reached Drive."""
    files = drive.files_on_drive()
    names = [f"{HOME}/gpt_checkpoints/checkpoint_{slot}.json" for slot in "ab"]
    return max(json.loads(files[name])["step"] for name in names if name in files)


@pytest.mark.slow
def test_five_sessions_on_colab_two_of_them_dropped_and_three_without_a_gpu(project, drive):
    """The same form is run again and again; nothing is chosen by hand but start_over."""
    drive.set_faults(refused=1)  # the first mount fails, and the second try does not
    text = session(project, drive, first=WITH_A_GPU, before_training=DROPPED, num_epochs=6)
    assert "Starting a fresh training." in text and text.endswith("[DROPPED]")
    first = step_on_drive(drive)
    assert first > 0

    end_session(drive, project)  # 2: no GPU is left, where `auto` means another preset
    text = session(project, drive, num_epochs=6)
    assert "NO GPU" in text
    resumed = int(re.search(r"Resuming from checkpoint_\w\.pt, step (\d+)", text)[1])
    assert resumed == first
    done = step_on_drive(drive)
    assert done > first
    assert drive.is_clean(), "the last cell has unmounted Drive, and something was written there"

    # 3: Run all once more on the same machine; there is nothing left to train
    text = session(project, drive, num_epochs=6)
    assert f"step {done}" in text.replace(",", "")
    assert step_on_drive(drive) == done
    assert drive.is_clean()

    end_session(drive, project)  # 4: start over, and lose the machine again
    text = session(
        project, drive, first=WITH_A_GPU, before_training=DROPPED, start_over=True, num_epochs=3
    )
    assert "Starting a fresh training." in text and text.endswith("[DROPPED]")
    assert "were moved to" in text
    fourth = step_on_drive(drive)
    assert 0 < fourth < done

    end_session(drive, project)  # 5: start_over is still ticked, which must not begin anew
    text = session(project, drive, start_over=True, num_epochs=3)
    assert "start_over is still ticked" in text
    assert f"step {fourth}." in text, "the fifth session did not resume the fourth"
    assert step_on_drive(drive) > fourth
    archived = [name for name in drive.files_on_drive() if "/earlier-" in name]
    assert len(archived) >= 4, "the first training is kept"

    end_session(drive, project)
    text = session(project, drive, name="test")
    assert "THIS IS THE BUNDLED MODEL" not in text
    stories = [name for name in drive.files_on_drive() if "output_no_" in name]
    assert len(stories) == 3


# ---- The first cell -----------------------------------------------------------------------------


def first_cell(name: str = "train"):
    """A notebook that holds only the first code cell of `name`, and prints where golpo is."""
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = code[:1]
    notebook.cells[0].source += "\nprint('golpo is', golpo.__file__)"
    return notebook


def make_repository(folder: Path) -> str:
    """A git repository with the project; returns its address."""
    folder.mkdir()
    for name in ("golpo_utils.py", "golpo", "requirements-colab.txt"):
        source = PROJECT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder.as_uri()


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_notebook_by_itself_clones_the_project_once(name, tmp_path):
    address = make_repository(tmp_path / "repository")
    (tmp_path / "alone").mkdir()
    clone = tmp_path / "alone" / "Golpo-Kothok-GPT"
    for _ in range(2):
        notebook = first_cell(name)
        edit(notebook, "REPOSITORY", repr(address))
        text, _ = execute(notebook, tmp_path / "alone")
        assert f"golpo is {clone / 'golpo' / '__init__.py'}" in text
    assert [folder.name for folder in (tmp_path / "alone").iterdir()] == [clone.name]


def test_a_folder_of_an_old_version_is_named_and_passed_over(tmp_path):
    """It holds a golpo_utils.py that must not be imported, and no package."""
    address = make_repository(tmp_path / "repository")
    old = tmp_path / "alone" / "Golpo-Kothok-GPT"
    old.mkdir(parents=True)
    for folder in (old, tmp_path / "alone"):
        (folder / "golpo_utils.py").write_text("raise SystemExit('the old file')")
    notebook = first_cell()
    edit(notebook, "REPOSITORY", repr(address))
    notebook.cells[0].source += "\nimport golpo_utils; print('model is', golpo_utils.__file__)"
    text, _ = execute(notebook, tmp_path / "alone")
    assert f"Skipped {tmp_path / 'alone'}: it holds an old version" in text
    assert f"Skipped {old}: it holds an old version" in text
    assert f"model is {tmp_path / 'alone' / 'Golpo-Kothok-GPT-2' / 'golpo_utils.py'}" in text


def test_only_what_is_missing_is_installed_and_never_what_colab_pins(project, tmp_path):
    """One package of the list is hidden, and a recorder stands in for pip."""
    notebook = first_cell()
    source = notebook.cells[0].source
    notebook.cells[0].source = f"""
import importlib.util
import subprocess
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "huggingface_hub" else find_spec(name)
subprocess.run = lambda command, check: print("RAN", command[1:])
{source}"""
    text, _ = execute(notebook, project / "notebooks")
    assert text.count("RAN") == 1
    assert "RAN ['-m', 'pip', 'install', '--quiet', 'huggingface_hub']" in text


def test_the_list_for_colab_fits_the_requirements():
    """Every line is a package of requirements.txt, under the name by which it is imported."""
    lines = (PROJECT / "requirements-colab.txt").read_text(encoding="utf-8").splitlines()
    names = {line for line in lines if line and not line.startswith("#")}
    text = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^[\w-]+", text, re.M))
    assert names <= required
    assert not names & {"torch", "numpy", "ipywidgets", "ipykernel"}
    assert required - names == {"torch", "numpy", "ipywidgets", "tyro"}
    for name in names:
        assert importlib.util.find_spec(name.replace("-", "_")) is not None, name


# ---- As files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "it has outputs"
    assert "widgets" not in notebook.metadata
    assert notebook.metadata["accelerator"] == "GPU"
    assert notebook.metadata["colab"]["gpuType"] == "T4"
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code":
            assert before.cell_type == "markdown", f"no words above {cell.source[:40]!r}"
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_model_components_come_from_the_model_file_and_the_rest_from_the_package(path):
    notebook = nbformat.read(path, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    tree = ast.parse(code)
    sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert sources <= {"pathlib", "golpo", "golpo_utils", "golpo.checkpoint"}
    import golpo

    used = set(re.findall(r"\bgolpo\.(\w+)", code))
    assert used
    assert used <= set(golpo.__all__)


def test_what_the_pages_show_and_link_to_is_in_the_repository():
    """Not only on the disk of the person who wrote them: git must know each picture and file."""
    if not (PROJECT / ".git").exists():
        pytest.skip("this copy of the project is no git checkout")
    listed = ["git", "ls-files"]
    done = subprocess.run(listed, cwd=PROJECT, capture_output=True, text=True, check=True)
    known = set(done.stdout.splitlines())
    folders = {str(parent) for file in known for parent in Path(file).parents}
    pages = [Path(file) for file in known if file.endswith(".md")]
    assert Path("README.md") in pages
    for page in pages:
        text = (PROJECT / page).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        for link in links + re.findall(r'<img src="([^":]+)"', text):
            target = os.path.normpath(page.parent / link)
            assert target in known | folders, f"{link} in {page}"


def test_pages_name_only_commands_that_exist():
    """`golpo …` in the README has a command and flags that the command line knows."""
    page = (PROJECT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?:-m |`)golpo (\w+)([^`#\n]*)", page)
    names = {"train", "generate", "evaluate", "export", "compare", "learn"}
    assert {name for name, _ in commands} == names
    helps = {}
    for name, rest in commands:
        if name not in helps:
            command = [sys.executable, "-m", "golpo", name, "--help"]
            done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
            helps[name] = done.stdout
        for flag in re.findall(r"--[\w.-]+", rest):
            assert flag in helps[name], f"{name} has no {flag}"
