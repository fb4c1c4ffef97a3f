"""The resources that Ray must have, and the addresses where it is searched."""

import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from ollm_rl.agents.training.trainer import train
from ollm_rl.agents.workers import cluster
from ollm_rl.cli import main
from tests.agents.workers.test_workers import config, flags


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 3}, "workers=3 need a processor core each, and Ray has 2"),
        ({"gpus_per_worker": 0.5}, "workers=2 with gpus_per_worker=0.5 do not fit into the 0 GPUs that Ray has"),
    ],
)
def test_resources_that_are_not_there_are_refused_before_a_run_begins(
    folder: Path, local_ray: None, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(config(folder, "impossible", **changes))
    assert not (folder / "impossible").exists()


def test_a_worker_has_its_share_of_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 16.0, "GPU": 2.0})
    cluster.check_resources(4, 0.5)
    cluster.check_resources(4, 0.4)  # a third 0.4 of a GPU does not fit beside two
    for workers, share in ((5, 0.5), (5, 0.4), (3, 1.0)):
        with pytest.raises(ValueError, match="do not fit into the 2 GPUs"):
            cluster.check_resources(workers, share)


def test_an_address_without_a_ray_cluster_is_refused_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:  # listens, but is no Ray
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"no Ray cluster answers at ray_address='{taken}'; start one with"):
            cluster.connect(taken)
    settings = config(folder, "nowhere")
    for address in (taken, "nonsense"):  # nothing listens there now
        assert main(["train", *flags(settings), "--ray_address", address]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ollm-rl:")]
        assert f"no Ray cluster answers at ray_address='{address}'" in line
    assert not settings.out.exists()


def test_a_cluster_is_accepted_by_its_address_and_token(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    address = ray.get_runtime_context().gcs_address
    cluster._check_address(address)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster")
    with pytest.raises(ValueError, match=f"the Ray cluster at ray_address='{address}' expects another token"):
        cluster._check_address(address)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 9}, "workers=9 are more than the 8 groups"),
        ({"gpus_per_worker": 2.0}, "gpus_per_worker=2.0 must be at least 0 and at most 1"),
        ({"workers": 0, "async_staleness": 1}, "async_staleness=1 is not used without workers"),
        ({"worker_timeout": 0.0}, "worker_timeout=0.0 must be more than 0"),
    ],
)
def test_a_setting_of_workers_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, "run", **changes)
