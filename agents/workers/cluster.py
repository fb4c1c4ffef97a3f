"""Connect this process to Ray: to an instance of its own, or to a running cluster."""

import logging
import os
import socket
import subprocess
import sys
import threading
from urllib.parse import urlsplit

from ollm_rl.errors import UsageError, extra

with extra("ray"):
    import ray

PATIENCE = 20.0  # seconds for a cluster to answer


def connect(address: str | None) -> bool:
    """Connect to Ray, unless this process is connected already.

    Args:
        address: Address of a cluster, ``host:port`` or ``auto``; None starts one on this machine, which ends with this
            process.

    Returns:
        Whether this call connected, so that its caller has to call ``ray.shutdown``.

    Raises:
        UsageError: If no cluster answers at the address.
    """
    if ray.is_initialized():
        return False
    if address is not None:
        _check_address(address)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Output of workers would break the progress bar. Ray keeps it in its logs, and errors are returned as results.
    ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


def check_resources(workers: int, gpus_per_worker: float) -> None:
    """Compare what the workers need with the cluster's total resources.

    Raises:
        UsageError: If these can never be enough; Ray itself would wait for ever.
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
    """Try to connect from a child process: a failed attempt takes Ray two minutes and ends the process."""
    answers = wrong_token = False
    try:
        if address != "auto":
            url = urlsplit(address if "://" in address else f"//{address}")
            socket.create_connection((url.hostname or "", url.port or 0), timeout=PATIENCE).close()
        command = [sys.executable, "-c", f"import ray; ray.init(address={address!r})"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            patience = threading.Timer(PATIENCE, process.kill)
            patience.start()
            # Ray says it at once and tries again for 20 seconds.
            wrong_token = any("InvalidAuthToken" in line for line in process.stderr)
            if wrong_token:
                process.kill()
            answers = process.wait() == 0
            patience.cancel()
    except (OSError, ValueError):
        pass
    if wrong_token:
        raise UsageError(
            f"the Ray cluster at ray_address={address!r} expects another token; set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN to what it was started with"
        )
    if not answers:
        raise UsageError(
            f"no Ray cluster answers at ray_address={address!r}; start one with 'ray start --head' or leave "
            "ray_address out"
        )
