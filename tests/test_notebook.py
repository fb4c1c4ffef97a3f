"""The notebook of the quickstart is valid, has no outputs, and runs as it stands."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from tests.places import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    runs = Path("runs/notebook")
    results = json.loads((runs / "eval" / "results.json").read_text())
    models = ["tiny-arith", *(str(runs / name) for name in ("options", "anchored", "vocabulary"))]
    assert {result["model"] for result in results} == set(models)
    *table, last = [line for line in capsys.readouterr().out.splitlines() if line]
    rows = [line.split()[0] for line in table if line.endswith("%]")]
    assert rows == models
    assert last == "runs/notebook/report.html" and Path(last).stat().st_size > 10_000


def test_the_notebook_is_valid_and_its_links_lead_somewhere() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) == 3 and all((ROOT / "docs" / link).is_file() for link in links)
