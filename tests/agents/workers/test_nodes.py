"""A Ray cluster of two nodes, here on one machine: what it must have, and a worker on each makes the same run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

import ollm_rl.agents.workers.ray_workers as ray_workers
from ollm_rl.agents.completions import read_completions
from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.workers.local import RolloutWorker
from ollm_rl.agents.workers.ray_workers import build_worker
from tests.agents.workers.test_workers import config, curve


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Address of a cluster of two nodes with a core each."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=1, num_gpus=0)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def build_noting(settings: Any, *arguments: Any) -> RolloutWorker:
    """A worker that notes on which node it is."""
    (settings.out / f"on-{ray.get_runtime_context().get_node_id()}").touch()
    return build_worker(settings, *arguments)


@pytest.mark.slow
def test_workers_on_two_nodes_make_the_run_of_one_process(
    folder: Path, two_nodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_workers, "build_worker", build_noting)
    out = train(config(folder, "nodes", iterations=2, ray_address=two_nodes))
    assert len(list(out.glob("on-*"))) == 2
    alone = train(config(folder, "alone", iterations=2, workers=0))
    assert read_completions(out) == read_completions(alone)
    for row, other in zip(curve(alone), curve(out), strict=True):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 3}, "workers=3 need a processor core each, and Ray has 2"),
        ({"gpus_per_worker": 0.5}, "workers=2 with gpus_per_worker=0.5 do not fit into the 0 GPUs that Ray has"),
    ],
)
def test_resources_that_are_not_there_are_refused_before_a_run_begins(
    folder: Path, two_nodes: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(folder, "impossible", ray_address=two_nodes, **changes))
    assert not (folder / "impossible").exists()
