"""Events of mkdocs: pages from the code and from elsewhere in the repository, links between them, equations.

A link in Markdown names a file of the repository, so that it also works where the file is read without the site.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "hooks")]

import reference  # noqa: E402  # found through the path above

# Files outside docs/ by their place in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff",
}
ELSEWHERE |= {
    f"experiments/results/{path.name}": f"results/{path.name}"
    for path in sorted((ROOT / "experiments" / "results").iterdir())
    if path.is_file() and path.name != "README.md"
}
ELSEWHERE["experiments/results/README.md"] = "results/claims.md"  # results/index.md is another page
NOTEBOOKS = {"docs/quickstart.ipynb": "notebook.md"}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s:]+)(#[^)]*)?\)")
CODE = re.compile(r"(```.*?```)", re.DOTALL)
EQUATION = re.compile(r"```math\n(.*?)```", re.DOTALL)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    pages = {"settings.md": reference.settings_page(), **reference.api_pages()}
    pages |= {place: reference.notebook_page(ROOT / source) for source, place in NOTEBOOKS.items()}
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links of the site, and equations into MathML."""
    place = page.file.src_uri
    source = next((name for name, other in ELSEWHERE.items() if other == place), f"docs/{place}")
    made = EQUATION.sub(lambda match: equation(match[1]), markdown)
    parts = CODE.split(made)
    return "".join(part if part.startswith("```") else LINK.sub(lambda m: link(m, source), part) for part in parts)


def link(match: re.Match[str], source: str) -> str:
    """A link as the site needs it; what the site does not hold keeps its text only."""
    text, target, anchor = match[1], match[2], match[3] or ""
    wanted = os.path.normpath(os.path.join(os.path.dirname(source), target))
    place = (ELSEWHERE | NOTEBOOKS).get(wanted) or wanted.removeprefix("docs/")
    if wanted not in ELSEWHERE and not wanted.startswith("docs/"):
        return text
    here = ELSEWHERE.get(source) or source.removeprefix("docs/")
    return f"[{text}]({os.path.relpath(place, os.path.dirname(here) or '.')}{anchor})"


def equation(latex: str) -> str:
    """MathML of a displayed equation: browsers draw it without scripts."""
    return f'<div class="equation">{latex2mathml.converter.convert(latex.strip(), display="block")}</div>'
