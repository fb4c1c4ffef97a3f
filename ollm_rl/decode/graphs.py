"""Functions as CUDA graphs, because a transformers model spends ten times as long in Python as in its kernels."""

from collections.abc import Callable, Hashable, Sequence

import torch


class Graphs:
    """Runs functions as recorded graphs, one for each key. On other devices it calls them.

    The tensors that a recorded function reads and writes must keep their addresses, and what it does must not depend
    on their values.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, function: Callable[[], None], mutated: Sequence[torch.Tensor] = ()) -> None:
        """Run the function, as a graph on CUDA.

        Args:
            key: Identifies the function and all that it depends on except the values of tensors.
            function: Called at the first run of the key; on a CPU at every run.
            mutated: Tensors that the function both reads and writes. They are restored after the warm-up call that
                precedes a recording.
        """
        if self.device.type != "cuda":
            function()
            return
        if key not in self._recorded:
            self._recorded[key] = self._record(function, mutated)
        self._recorded[key].replay()

    def _record(self, function: Callable[[], None], mutated: Sequence[torch.Tensor]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in mutated]
        warm_up(function)
        for tensor, value in zip(mutated, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        shared_pool = next(iter(self._recorded.values())).pool() if self._recorded else None
        with torch.cuda.graph(graph, pool=shared_pool):
            function()
        return graph


def warm_up(function: Callable[[], None]) -> None:
    """Call a function before it is recorded: libraries allocate at their first call, which must not be recorded."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
