import os
import pickle
import shutil
import signal
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from ollm_rl.options.config import OptionConfig
from ollm_rl.options.model import IGNORED, CountedStates, OptionModel
from ollm_rl.pretrain import hidden_cache
from ollm_rl.pretrain.data import PadRight
from ollm_rl.pretrain.hidden_cache import HiddenCache, collate_states, open_hidden_cache, split_into_shards
from tests.processes import run_process
from tests.tiny_models import EOS, HIDDEN, VOCAB, full_hidden_states, tiny_model

POSITIONS = 60  # of a shard

Examples = list[dict[str, list[int]]]
Usage = namedtuple("Usage", "total used free")  # as shutil has it


def option_model(*, seed: int = 0, dtype: torch.dtype = torch.float32) -> OptionModel:
    torch.manual_seed(seed)
    config = OptionConfig(num_options=4, width=8, estimator="exact")
    return OptionModel.from_backbone(tiny_model("llama", seed=seed).to(dtype), config)


def some_examples(seed: int = 0) -> Examples:
    """24 examples of 2 to 30 tokens. Some have only a prompt; in one, a token within the completion does not count."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(24):
        ids = rng.integers(1, VOCAB, int(rng.integers(2, 31))).tolist()
        prompt = len(ids) if index in (0, 7, 23) else len(ids) // 3
        examples.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
    examples[5]["labels"][-2] = IGNORED
    return examples


def build(folder: Path, model: OptionModel | None = None, examples: Examples | None = None) -> HiddenCache:
    given = some_examples() if examples is None else examples
    return open_hidden_cache(model or option_model(), given, folder, pad_token_id=EOS, positions_per_shard=POSITIONS)


def items_of(cache: HiddenCache) -> list[dict[str, torch.Tensor]]:
    return [cache[index] for index in range(len(cache))]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def contents(folder: Path) -> dict[str, bytes]:
    """Content of all files except the lock, by their path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Identities of the files, which change when a file is written again, even with the same content."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards(folder)}


def test_an_item_holds_the_states_and_targets_of_one_example(tmp_path: Path) -> None:
    model, examples = option_model(), some_examples()
    cache = build(tmp_path, model, examples)
    assert len(shards(tmp_path)) > 3 and len(cache) == len(examples)
    for item, example in zip(items_of(cache), examples, strict=True):
        ids, labels = example["input_ids"], example["labels"]
        counted = [place for place in range(len(ids) - 1) if labels[place + 1] != IGNORED]
        expected = full_hidden_states(model.backbone, ids)[counted]
        assert item["hidden_states"].dtype == torch.bfloat16 and item["hidden_states"].shape == (len(counted), HIDDEN)
        torch.testing.assert_close(item["hidden_states"].float(), expected, rtol=2**-8, atol=1e-5)
        assert item["targets"].dtype == torch.int64 and item["targets"].tolist() == [
            ids[place + 1] for place in counted
        ]
    assert cache[-2]["targets"].equal(cache[22]["targets"])


def test_a_shard_stores_the_number_of_positions_of_each_example(tmp_path: Path) -> None:
    build(tmp_path)
    counts = torch.cat([load_file(path)["counts"] for path in shards(tmp_path)])
    assert counts.tolist() == [sum(label != IGNORED for label in example["labels"][1:]) for example in some_examples()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_from_the_cache_are_those_of_the_stream(tmp_path: Path, dtype: torch.dtype) -> None:
    model, examples = option_model(dtype=dtype), some_examples()
    cache = build(tmp_path, model, examples)
    for rows in (range(8), range(8, 24)):
        stored = model.loss(CountedStates(**collate_states([cache[row] for row in rows])))
        stream = model(**PadRight(EOS)([examples[row] for row in rows]))
        for name in ("loss", "cross_entropy", "kl", "policy_loss"):
            assert getattr(stored, name).item() == pytest.approx(getattr(stream, name).item(), rel=0.01), name


def test_offsets_count_within_each_example() -> None:
    items = [
        {"hidden_states": torch.full((count, 2), float(count)), "targets": torch.arange(count) + 10 * count}
        for count in (2, 0, 3)
    ]
    batch = CountedStates(**collate_states(items))
    assert batch.hidden_states[:, 0].tolist() == [2, 2, 3, 3, 3]
    assert batch.targets.tolist() == [20, 21, 30, 31, 32]
    assert batch.offsets.tolist() == [0, 1, 0, 1, 2]


def test_shards_hold_whole_examples() -> None:
    counts = np.array([0, 3, 3, 5, 0, 20, 1, 9, 0])
    assert split_into_shards(counts, 10) == [range(3), range(3, 5), range(5, 6), range(6, 9)]
    assert split_into_shards(np.array([], dtype=int), 10) == []


def test_examples_without_counted_tokens_make_an_empty_cache(tmp_path: Path, passes: list[int]) -> None:
    examples = [{"input_ids": [1, 2], "labels": [IGNORED] * 2}, {"input_ids": [1], "labels": [1]}]
    for _ in range(2):
        cache = build(tmp_path, examples=examples)
        assert [item["hidden_states"].shape for item in items_of(cache)] == [(0, HIDDEN)] * 2
    assert not passes


def test_a_finished_cache_is_opened_without_a_forward_pass(tmp_path: Path, passes: list[int]) -> None:
    build(tmp_path)
    assert sum(passes) == 21  # three of 24 examples have no counted position
    before = identities(tmp_path)
    passes.clear()
    build(tmp_path)
    assert not passes and identities(tmp_path) == before


class Killed(BaseException):
    """Stops a build like a kill; nothing catches it."""


def test_a_stopped_build_resumes_and_ends_byte_for_byte_like_one_never_stopped(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "whole")
    total = len(passes)
    passes.clear()
    plain = OptionModel.counted_states

    def stopped(*args: Any, **kwargs: Any) -> CountedStates:
        if len(passes) == 2:
            raise Killed
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(OptionModel, "counted_states", stopped)
        build(tmp_path / "stopped")
    before = identities(tmp_path / "stopped")
    assert len(before) == 2
    passes.clear()
    build(tmp_path / "stopped")
    assert len(passes) == total - 2
    assert before.items() <= identities(tmp_path / "stopped").items()
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def build_until_killed(folder: Path) -> None:
    """Runs in a separate process, which dies half-way through writing its second shard."""

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        if shards(folder):
            path.write_bytes(b"half of a shard")
            os.kill(os.getpid(), signal.SIGKILL)
        plain(tensors, path, metadata)

    plain = hidden_cache.save_file
    pytest.MonkeyPatch().setattr(hidden_cache, "save_file", save_file)
    build(folder)


def test_a_build_killed_while_it_writes_resumes_and_ends_byte_for_byte_like_one_never_killed(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "whole")
    total = len(passes)
    passes.clear()
    ended = run_process(tmp_path / "log", build_until_killed, tmp_path / "killed")
    assert ended == -signal.SIGKILL, (tmp_path / "log").read_text()
    before = identities(tmp_path / "killed")
    assert len(before) == 1
    remains = b"half of a shard"
    assert remains in contents(tmp_path / "killed").values()

    def disk_usage(path: Path) -> Usage:
        return Usage(10**12, 0, 0 if remains in contents(tmp_path / "killed").values() else 10**9)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    build(tmp_path / "killed")
    assert len(passes) == total - 1
    assert before.items() <= identities(tmp_path / "killed").items()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], passes: list[int]
) -> None:
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free))
    examples = some_examples()
    positions = sum(label != IGNORED for example in examples for label in example["labels"][1:])
    with pytest.raises(
        ValueError, match=rf"hidden states of {positions} positions need .*kB in .*, but 0.00B are free; "
    ):
        build(tmp_path)
    assert not contents(tmp_path) and not passes
    free = 10**9
    build(tmp_path)
    sizes = [path.stat().st_size for path in shards(tmp_path)]
    # 32 bfloat16 numbers and an int32 per position, an int32 per example, and room for each shard's header.
    need = positions * (2 * HIDDEN + 4) + len(examples) * 4 + len(sizes) * 1024
    assert sum(sizes) <= need < sum(sizes) + len(sizes) * 1024
    assert f"hidden states of {positions} positions need {need / 1000:.1f}kB in {tmp_path}" in capsys.readouterr().out
    free = need - 1
    for path in shards(tmp_path):
        path.unlink()
    with pytest.raises(ValueError, match="give a cache folder on a larger disk"):
        build(tmp_path)
    free = need
    build(tmp_path)


def test_only_the_missing_shards_must_fit_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path)
    size = shards(tmp_path)[1].stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 0))
    build(tmp_path)
    shards(tmp_path)[1].unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, size + 1024))
    build(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cache folder .*file.* cannot be made \(Not a directory\); give another folder"
    ):
        build(tmp_path / "file")


def test_a_second_process_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(tmp_path).folder
    first = FileLock(folder / ".lock")
    first.acquire()
    said: list[str] = []

    def warning(line: str, *values: object) -> None:
        said.append(line % values)
        first.release()

    monkeypatch.setattr(hidden_cache.logger, "warning", warning)
    build(tmp_path)
    assert said == [f"another process is at work on {folder}; waiting for it"]


def test_workers_read_the_same_batches(tmp_path: Path) -> None:
    cache = build(tmp_path)
    plain, forked = (
        list(DataLoader(cache, batch_size=5, collate_fn=collate_states, num_workers=workers)) for workers in (0, 2)
    )
    assert len(plain) == len(forked) == 5
    for one, two in zip(plain, forked, strict=True):
        assert all(one[name].equal(two[name]) for name in CountedStates._fields)


def test_a_pickled_cache_carries_no_states(tmp_path: Path) -> None:
    cache = build(tmp_path)
    unread = len(pickle.dumps(cache))
    expected = [item["hidden_states"] for item in items_of(cache)]
    pickled = pickle.dumps(cache)
    assert len(pickled) == unread
    for item, states in zip(items_of(pickle.loads(pickled)), expected, strict=True):
        assert item["hidden_states"].equal(states)
