"""Ray for this process: one of its own, or a cluster that runs already."""

import logging
import os
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import ray

from ollm_rl.errors import UsageError

PATIENCE = 20.0  # seconds for a cluster to answer


def connect(address: str | None) -> bool:
    """Make Ray ready.

    Args:
        address: Of a cluster, ``host:port`` or ``auto``; None starts one on this machine, which ends with this
            process. Where this process is connected already, that stays so.

    Returns:
        Whether this call connected, so that its caller is to ``ray.shutdown``.

    Raises:
        UsageError: If no cluster answers at the address.
    """
    if ray.is_initialized():
        return False
    if address is not None:
        _check_address(address)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What workers print would break the progress bar; Ray keeps it in its logs, and errors come back as results.
    ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


def check_resources(workers: int, gpus_per_worker: float) -> None:
    """Compare what the workers need with what the cluster has in all.

    Raises:
        UsageError: If that can never be enough; Ray itself would wait for ever.
    """
    total = ray.cluster_resources()
    cores, gpus = int(total.get("CPU", 0)), int(total.get("GPU", 0))
    if workers > cores:
        raise UsageError(
            f"workers={workers} need a processor core each, and Ray has {cores}; lower workers or give a larger cluster"
        )
    if gpus_per_worker and workers > gpus * int(1 / gpus_per_worker):
        raise UsageError(
            f"workers={workers} with gpus_per_worker={gpus_per_worker:g} do not fit into the {gpus} GPUs that Ray has; "
            "lower gpus_per_worker (0: the CPU) or workers"
        )


def _check_address(address: str) -> None:
    """Connect from a child process first: a failed attempt of Ray takes two minutes and ends the process."""
    said = b""
    try:
        if address != "auto":
            where = urlsplit(address if "://" in address else f"//{address}")
            socket.create_connection((where.hostname or "", where.port or 0), timeout=PATIENCE).close()
        code = f"import ray; ray.init(address={address!r})"
        subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, check=True)
        return
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = error.stderr or b""
    except (OSError, ValueError):
        pass
    if b"InvalidAuthToken" in said:
        raise UsageError(
            f"the Ray cluster at ray_address={address!r} wants another token; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to what it was started with"
        )
    raise UsageError(
        f"no Ray cluster answers at ray_address={address!r}; start one by 'ray start --head', or leave ray_address out"
    )
