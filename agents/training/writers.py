"""A training run's metrics in TensorBoard and in the services that ``report_to`` names."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from ollm_rl.agents.config import RLConfig
from ollm_rl.agents.training.board import RunBoard, tagged
from ollm_rl.processes import rank
from ollm_rl.services.trackers import Trackers


class Writers:
    """What an iteration's metrics are written to, by the first process of a run; ``close`` it.

    Args:
        config: Settings of the run.
        history: Metrics of the iterations so far.

    Raises:
        UsageError: If a service refuses.
    """

    def __init__(self, config: RLConfig, history: Sequence[Mapping[str, float]]) -> None:
        with ExitStack() as opened:
            self._board: RunBoard | None = None
            if rank() == 0 and "tensorboard" in config.report_to:
                self._board = opened.enter_context(closing(RunBoard(config, history)))
            services = Trackers(config.report_to, config.out, dataclasses.asdict(config))
            self._services = opened.enter_context(services)
            self._opened = opened.pop_all()

    def log(self, row: Mapping[str, float]) -> None:
        """Write metrics at their number of ``episodes``."""
        if self._board is not None:
            self._board.add_iteration(row)
        self._services.log(tagged(row), int(row["episodes"]))

    def close(self) -> None:
        """Finish the files, and the runs in the services."""
        self._opened.close()
