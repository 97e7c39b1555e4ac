"""Run every notebook from top to bottom in a kernel of its own; exit 1 at the first cell that fails. Nothing is written.

python notebooks/execute.py [FILE...]            --keep FOLDER leaves executed copies there
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent
CELL_S_MAX = 120


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder in which executed copies are left")
    told = parser.parse_args()
    for file in told.files or sorted(FOLDER.glob("*.ipynb")):
        began = time.monotonic()
        notebook = nbformat.read(file, as_version=4)
        resources = {"metadata": {"path": str(FOLDER.parent)}}
        client = NotebookClient(notebook, timeout=CELL_S_MAX, resources=resources)
        try:
            client.execute()
        except CellExecutionError as error:
            print(f"{file.name}: {error}", file=sys.stderr)
            return 1
        if told.keep is not None:
            told.keep.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, told.keep / file.name)
        print(f"{file.name}: ran in {time.monotonic() - began:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
