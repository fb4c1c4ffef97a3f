"""The Hugging Face hub as folders on this machine."""

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import ollm_rl.backbones.names as names_module
import ollm_rl.options.hub as hub_module


class FolderHub:
    """The methods of ``HfApi`` that we call, on folders: one per repository, and a cache for downloads."""

    def __init__(self, root: Path) -> None:
        self.repositories, self.cache = root / "repositories", root / "cache"
        self.private: dict[str, bool] = {}
        self.refusal: Exception | None = None

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        if self.refusal:
            raise self.refusal
        (self.repositories / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.private.setdefault(repo_id, private)
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str) -> None:
        copy_matching(folder_path, self.repositories / repo_id, allow_patterns)

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        if not local_files_only:
            if self.refusal:
                raise self.refusal
            if not (self.repositories / repo_id).exists():
                raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found", response=Mock())
            copy_matching(self.repositories / repo_id, self.cache / repo_id, allow_patterns)
        if not (self.cache / repo_id).exists():
            raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")
        return str(self.cache / repo_id)


def copy_matching(source: Path, target: Path, allow_patterns: list[str]) -> None:
    """Copy the files that pass the hub's own filter."""
    paths = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
    for path in filter_repo_objects(paths, allow_patterns=allow_patterns):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, target / path)


def reachable(root: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    """A reachable hub, for which the machine has a token."""
    hub = FolderHub(root)
    for module in (hub_module, names_module):
        monkeypatch.setattr(module, "HfApi", lambda token=None: hub)
    monkeypatch.setattr(names_module, "hub_answers", lambda: True)
    monkeypatch.setattr(hub_module, "get_token", lambda: "hf_token")
    return hub
