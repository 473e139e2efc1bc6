"""The notebook of examples/ runs from top to bottom, and its model learns to think."""

import json

import nbformat
from nbclient import NotebookClient

from doc_blocks import ROOT

NOTEBOOK = ROOT / "examples" / "csv_to_report.ipynb"


def test_the_notebook_runs_and_ends_with_a_report(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert len(notebook.cells) == 10
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=None, kernel_name="python3", resources=place).execute()
    metrics = (tmp_path / "runs" / "notebook" / "metrics.jsonl").read_text("utf-8").splitlines()
    last = [json.loads(line) for line in metrics if "eval_accuracy" in line][-1]
    assert last["eval_accuracy"] > 0.6 > 0.3 > last["eval_accuracy_no_think"]
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
