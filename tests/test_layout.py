"""The folders on disk, the links next to them and the setuptools tables agree.

The wheel is built only from the tables: what they leave out is missing after an install, without
an error. Git, editors and mypy see the links instead.
"""

import os
import re
import tomllib
from pathlib import Path

from tests.places import ROOT

SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES: list[str] = SETUPTOOLS["packages"]
PACKAGE_DIR: dict[str, str] = SETUPTOOLS["package-dir"]
PACKAGE_DATA: dict[str, list[str]] = SETUPTOOLS["package-data"]

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

# What stays in the repository and out of the wheel.
NOT_SHIPPED_FOLDERS = {ROOT / "experiments" / name for name in ("bench", "results", "studies")}
NOT_SHIPPED_SUFFIXES = {".md", ".pyc"}


def folder_of(package: str) -> Path:
    """Return the real folder of a dotted package name, found as setuptools finds it."""
    if package in PACKAGE_DIR:
        return ROOT / PACKAGE_DIR[package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name if parent else ROOT / name


def folders_of(package: str) -> list[Path]:
    """Return the folders that an entry of the package-data table names; "*" means all packages."""
    return [folder_of(name) for name in PACKAGES] if package == "*" else [folder_of(package)]


def packages_on_disk() -> set[str]:
    """Return the dotted names of all folders with Python files, read from the real folders."""
    found = set()
    for top, folder in {"ollm_rl": "ollm_rl", **PACKAGE_DIR}.items():
        for path, subfolders, files in os.walk(ROOT / folder):  # os.walk does not follow links
            subfolders[:] = [s for s in subfolders if Path(path, s) not in NOT_SHIPPED_FOLDERS]
            if any(name.endswith(".py") for name in files):
                found.add(".".join([top, *Path(path).relative_to(ROOT / folder).parts]))
    return found


def data_on_disk() -> set[Path]:
    """Return every file in a package's folders that is not Python and has to ship."""
    found = set()
    for folder in ["ollm_rl", *PACKAGE_DIR.values()]:
        for path, subfolders, files in os.walk(ROOT / folder):
            subfolders[:] = [s for s in subfolders if s != "__pycache__" and Path(path, s) not in NOT_SHIPPED_FOLDERS]
            found |= {Path(path, f) for f in files if not f.startswith(".")}
    return {path for path in found if path.suffix not in {".py", *NOT_SHIPPED_SUFFIXES}}


def test_every_folder_with_python_files_is_in_the_packages_table() -> None:
    missing = packages_on_disk() - set(PACKAGES)
    assert not missing, f"add to [tool.setuptools] packages, or the wheel lacks them: {sorted(missing)}"


def test_every_entry_of_the_packages_table_is_a_package_on_disk() -> None:
    assert len(PACKAGES) == len(set(PACKAGES)), "a package is listed twice"
    missing = [p for p in PACKAGES if not (folder_of(p) / "__init__.py").is_file()]
    assert not missing, f"no __init__.py for these entries of [tool.setuptools] packages: {missing}"


def test_every_top_level_package_folder_is_mapped_below_ollm_rl() -> None:
    folders = {p.parent.name for p in ROOT.glob("[!.]*/__init__.py")} - {"ollm_rl", "tests"}
    assert folders == set(PACKAGE_DIR.values()), "[tool.setuptools.package-dir] and the top-level folders differ"
    assert all(package == f"ollm_rl.{folder}" for package, folder in PACKAGE_DIR.items()), PACKAGE_DIR


def test_each_mapped_folder_has_its_relative_link_and_there_are_no_others() -> None:
    links = {p.relative_to(ROOT).as_posix(): os.readlink(p) for p in (ROOT / "ollm_rl").rglob("*") if p.is_symlink()}
    assert links == {f"ollm_rl/{folder}": f"../{folder}" for folder in PACKAGE_DIR.values()}


def test_every_package_data_pattern_matches_a_file() -> None:
    unmatched = [
        f"{package}: {pattern}"
        for package, patterns in PACKAGE_DATA.items()
        for pattern in patterns
        if not any(path.is_file() for folder in folders_of(package) for path in folder.glob(pattern))
    ]
    assert not unmatched, f"[tool.setuptools.package-data] patterns without a file: {unmatched}"


def test_every_data_file_is_matched_by_a_package_data_pattern() -> None:
    shipped = {
        path
        for package, patterns in PACKAGE_DATA.items()
        for pattern in patterns
        for folder in folders_of(package)
        for path in folder.glob(pattern)
    }
    missing = sorted(str(path.relative_to(ROOT)) for path in data_on_disk() - shipped)
    assert not missing, f"add to [tool.setuptools.package-data], or the wheel lacks them: {missing}"


def test_the_version_is_the_newest_of_the_changelog_and_that_of_the_citation() -> None:
    released = re.findall(r"^## \[(\d.*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
