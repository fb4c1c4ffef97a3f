"""Shards that are damaged or belong elsewhere are found and computed again."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ollm_rl.pretrain import hidden_cache
from tests.pretrain.test_hidden_cache import build, contents, identities, option_model, shards


def truncate(paths: list[Path]) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:-3])


def empty(paths: list[Path]) -> None:
    paths[1].write_bytes(b"")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def flip_in_states(paths: list[Path]) -> None:
    flip(paths[1], -1)


def flip_in_targets(paths: list[Path]) -> None:
    data = paths[1].read_bytes()
    flip(paths[1], data.index(load_file(paths[1])["targets"].numpy().tobytes()) + 4)


def flip_in_key(paths: list[Path]) -> None:
    flip(paths[1], paths[1].read_bytes().index(b"key") + 12)


def flip_in_name_of_tensor(paths: list[Path]) -> None:
    flip(paths[1], paths[1].read_bytes().index(b'"targets"') + 3)


def flip_in_length_of_header(paths: list[Path]) -> None:
    flip(paths[1], 0)


def strip_metadata(paths: list[Path]) -> None:
    hidden_cache.save_file(load_file(paths[1]), paths[1])


def put_foreign(paths: list[Path]) -> None:
    """Put the shard of the same examples and another backbone there, which differs only in its key."""
    folder = paths[1].parent.parent.with_name("foreign")
    build(folder, option_model(seed=1))
    shutil.copy(shards(folder)[1], paths[1])


def swap(paths: list[Path]) -> None:
    one, two = paths[1].read_bytes(), paths[2].read_bytes()
    paths[1].write_bytes(two)
    paths[2].write_bytes(one)


@pytest.mark.parametrize(
    ("damage", "hit", "reason"),
    [
        (truncate, (1,), "cannot be read"),
        (empty, (1,), "cannot be read"),
        (flip_in_states, (1,), "its checksum differs"),
        (flip_in_targets, (1,), "its checksum differs"),
        (flip_in_key, (1,), "another cache"),
        (flip_in_name_of_tensor, (1,), "its checksum differs"),
        (flip_in_length_of_header, (1,), "cannot be read"),
        (strip_metadata, (1,), "cannot be read"),
        (put_foreign, (1,), "another cache"),
        (swap, (1, 2), "another shard"),
    ],
)
def test_a_damaged_or_foreign_shard_is_found_and_replaced_and_the_others_stay(
    tmp_path: Path,
    passes: list[int],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[list[Path]], None],
    hit: tuple[int, ...],
    reason: str,
) -> None:
    folder = tmp_path / "cache"
    build(folder)
    whole, before, paths = contents(folder), identities(folder), shards(folder)
    damage(paths)
    assert contents(folder) != whole
    passes.clear()
    build(folder)
    assert len(passes) == len(hit)
    assert contents(folder) == whole
    after = identities(folder)
    names = {paths[number].name for number in hit}
    assert {name for name in after if after[name] != before[name]} == names
    for name in names:
        assert any(name in line and reason in line for line in caplog.messages), caplog.messages
