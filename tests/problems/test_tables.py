"""Where rows come from: Parquet files, folders, splits, streams, and seeded samples of all of them."""

import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from ollm_rl.errors import UsageError
from ollm_rl.problems import load_problems, tables
from ollm_rl.problems.sampling import seeded_sample


def rows(count: int, word: str = "q") -> list[dict[str, str]]:
    return [{"question": f"{word}{index}", "answer": str(index)} for index in range(count)]


def questions(spec: str, **arguments: object) -> list[str]:
    return [problem.question for problem in load_problems(spec, **arguments)]  # type: ignore[arg-type]


def test_splits_of_a_folder_are_named_as_its_files_are(tmp_path: Path) -> None:
    for split in ("cot", "tir"):
        (tmp_path / "data").mkdir(exist_ok=True)
        for number in range(2):
            path = tmp_path / f"data/{split}-0000{number}-of-00002.parquet"
            datasets.Dataset.from_list(rows(2, f"{split}{number}-")).to_parquet(path)
    assert questions(f"hf:{tmp_path}", split="cot") == ["cot0-0", "cot0-1", "cot1-0", "cot1-1"]
    assert questions(f"parquet:{tmp_path}/data/tir-*.parquet") == ["tir0-0", "tir0-1", "tir1-0", "tir1-1"]
    with pytest.raises(ValueError, match=r"split='train' cannot be loaded: .*cot.*tir"):
        load_problems(f"hf:{tmp_path}")


def test_folders_of_save_to_disk_are_read_with_and_without_splits(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(rows(3))
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"cot": data, "tir": data.select([2])}).save_to_disk(tmp_path / "several")
    assert questions(f"hf:{tmp_path}/one") == ["q0", "q1", "q2"]
    assert questions(f"hf:{tmp_path}/several", split="tir") == ["q2"]
    with pytest.raises(ValueError, match="several has no split 'train'; give --split, one of cot, tir"):
        load_problems(f"hf:{tmp_path}/several")
    (tmp_path / "one/state.json").write_text("{")
    with pytest.raises(ValueError, match="one cannot be loaded: .*; copy it again"):
        load_problems(f"hf:{tmp_path}/one")


def test_a_local_folder_is_not_copied_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(rows(3)).to_parquet(tmp_path / "set/train.parquet")
    assert questions(f"hf:{tmp_path}/set") == questions(f"parquet:{tmp_path}/set/train.parquet") == ["q0", "q1", "q2"]
    assert not list(tmp_path.rglob("*.arrow"))


def test_parquet_files_that_are_missing_folders_or_broken_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file .*absent.parquet; give parquet:PATH"):
        load_problems(f"parquet:{tmp_path}/absent.parquet")
    with pytest.raises(ValueError, match=f"names the folder .*; give hf:{tmp_path} with a split"):
        load_problems(f"parquet:{tmp_path}")
    (tmp_path / "broken.parquet").write_text("no table")
    with pytest.raises(ValueError, match="broken.parquet cannot be loaded: .*; check the file"):
        load_problems(f"parquet:{tmp_path}/broken.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_limit_takes_a_sample_of_the_seed_in_the_order_of_the_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows(100))))
    else:
        datasets.Dataset.from_list(rows(100)).to_parquet(path)
    spec, every = f"{kind}:{path}", [f"q{index}" for index in range(100)]
    sample = questions(spec, limit=20, seed=1)
    assert sample == questions(spec, limit=20, seed=1) and len(sample) == 20
    assert sample != every[:20] and sample == [question for question in every if question in sample]
    assert sample != questions(spec, limit=20, seed=2)
    assert set(questions(spec, limit=5, seed=1)) < set(sample)
    assert questions(spec, limit=100, seed=1) == questions(spec, limit=1000) == questions(spec) == every


def test_a_sample_is_uniform() -> None:
    counts = [0] * 8
    for seed in range(2000):
        for item in seeded_sample(iter(range(8)), 2, seed):
            counts[item] += 1
    # Each item is in a quarter of 2,000 samples; four standard deviations of sqrt(2000 / 4 * 3 / 4).
    assert all(abs(count - 500) < 4 * math.sqrt(375) for count in counts)


def test_a_sample_of_lines_parses_only_these(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["{broken", json.dumps(rows(1)[0]), "{broken"]))
    read = 0
    for seed in range(12):
        try:
            read += questions(f"jsonl:{path}", limit=1, seed=seed) == ["q0"]
        except ValueError as error:
            assert "line 1" in str(error) or "line 3" in str(error)
    assert 0 < read < 12


def test_a_limit_streams_a_data_set_of_the_hub_in_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[dict[str, str]] = []

    class Stream:
        def shuffle(self, seed: int, buffer_size: int) -> Iterator[dict[str, str]]:
            assert buffer_size == 10_000
            for row in random.Random(seed).sample(rows(40), 40):
                read.append(row)
                yield row

    def load(*names: object, **arguments: object) -> Stream:
        assert names == ("someone/sums", "main") and arguments["streaming"] and arguments["split"] == "cot"
        return Stream()

    monkeypatch.setattr(datasets, "load_dataset", load)
    first = questions("hf:someone/sums:main", split="cot", limit=5, seed=3)
    assert len(read) == 5 and first == [row["question"] for row in read]
    assert first == questions("hf:someone/sums:main", split="cot", limit=5, seed=3)
    assert first != questions("hf:someone/sums:main", split="cot", limit=5, seed=4)


def test_without_a_network_the_cache_is_read_and_all_else_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "hub_answers", lambda: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    version = tmp_path / "cache/owner___cached/default/0.0.0/0123abcd"  # where datasets keeps what it has downloaded
    datasets.Dataset.from_list(rows(3)).to_parquet(tmp_path / "source/cached.parquet")
    datasets.load_dataset(str(tmp_path / "source"), cache_dir=tmp_path / "first")
    (info,) = (tmp_path / "first").rglob("dataset_info.json")
    shutil.copytree(info.parent, version)
    (version / "source-train.arrow").rename(version / "cached-train.arrow")
    assert questions("hf:owner/cached", split="train") == ["q0", "q1", "q2"]
    for limit in (None, 2):
        with pytest.raises(UsageError) as raised:
            load_problems("hf:owner/other", split="train", limit=limit)
        assert str(raised.value) == (
            "hf:owner/other with split='train' cannot be loaded: the hub is out of reach and it is not in the cache; "
            "check the network, or give a local folder"
        )
    assert not datasets.config.HF_HUB_OFFLINE
