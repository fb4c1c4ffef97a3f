"""A training run's metrics in TensorBoard and in the services that ``report_to`` names."""

import dataclasses
from contextlib import ExitStack

from torch.utils.tensorboard import SummaryWriter

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.tags import tag
from ollm_rl.services.trackers import Trackers


class Writers:
    """What an iteration's metrics are written to; ``close`` it.

    Args:
        config: Settings of the run.
        first: Number of episodes from which on what a killed run wrote to TensorBoard is discarded.

    Raises:
        UsageError: If a service refuses.
    """

    def __init__(self, config: RLConfig, first: int) -> None:
        with ExitStack() as opened:
            self._board: SummaryWriter | None = None
            if "tensorboard" in config.report_to:
                self._board = opened.enter_context(SummaryWriter(str(config.out), purge_step=first))
            services = Trackers(config.report_to, config.out, dataclasses.asdict(config))
            self._services = opened.enter_context(services)
            self._opened = opened.pop_all()

    def log(self, row: dict[str, float]) -> None:
        """Write metrics at their number of ``episodes``."""
        values, step = {tag(name): value for name, value in row.items()}, int(row["episodes"])
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        self._services.log(values, step)

    def close(self) -> None:
        """Finish the files, and the runs in the services."""
        self._opened.close()
