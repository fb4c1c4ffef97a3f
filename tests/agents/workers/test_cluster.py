"""The shares of a GPU that workers may have, and the addresses where Ray is searched."""

import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from ollm_rl.agents.workers import cluster
from ollm_rl.cli import main
from tests.agents.workers.test_workers import config, flags


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
