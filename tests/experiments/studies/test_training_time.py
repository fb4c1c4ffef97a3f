"""Minutes of training from raw files, counted by hand."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ollm_rl.experiments.raw import KEY
from ollm_rl.experiments.studies.training_time import time_table


def save(path: Path, runs: dict[tuple[str, int], list[float]], machine: str) -> Path:
    """A file of runs with 100 episodes per iteration, by the seconds after each."""
    rows = [
        {"method": method, "seed": seed, "episodes": 100.0 * count, "seconds": value}
        for (method, seed), seconds in runs.items()
        for count, value in enumerate(seconds, 1)
    ]
    metadata = {KEY: json.dumps({"machine": machine, "tuned": {method: {} for method, _ in runs}}).encode()}
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(metadata), path)
    return path


def test_a_run_of_two_files_counts_where_it_is_longest_and_only_gpus_are_summed(tmp_path: Path) -> None:
    whole = {("latent", 0): [60.0, 90.0, 120.0], ("latent", 1): [30.0, 60.0]}
    part = {("latent", 0): [60.0, 90.0], ("top tokens", 0): [12.0, 36.0]}
    files = [
        save(tmp_path / "part.parquet", part, "Linux x86_64, 32 cores, NVIDIA H100 80GB HBM3"),
        save(tmp_path / "whole.parquet", whole, "Linux x86_64, 32 cores, NVIDIA H200"),
        save(tmp_path / "toy.parquet", {("latent", 0): [600.0]}, "Linux x86_64, 64 cores"),
    ]
    for order in (files, files[::-1]):
        table = time_table(order)
        assert sorted(list(map(str, row)) for row in table.rows) == [
            ["part", "H100 80GB HBM3", "1", "200", "0.6"],
            ["toy", "CPU", "1", "100", "10.0"],
            ["whole", "H200", "2", "500", "3.0"],
        ]
        assert table.note.startswith("4 minutes on GPUs in all.")
