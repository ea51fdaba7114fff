"""Run both notebooks from top to bottom, as a person would with Run all.

    python notebooks/run_all.py                 # train.ipynb, then test.ipynb
    python notebooks/run_all.py test            # only test.ipynb

The executed copies, with everything that they printed and drew, are written to output/.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PROJECT = Path(__file__).resolve().parent.parent


def run(name):
    notebook = nbformat.read(PROJECT / "notebooks" / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(PROJECT / "notebooks")}})
    started = time.monotonic()
    try:
        client.execute()
    finally:
        nbformat.write(notebook, PROJECT / "output" / f"{name}.executed.ipynb")
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                print(output.text, end="")
    print(f"\n=== {name}.ipynb ran in {time.monotonic() - started:.0f} seconds\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or ("train", "test"):
        run(name)
