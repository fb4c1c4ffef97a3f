"""Functions as CUDA graphs: the Python of a transformers model costs ten times the run time of its kernels."""

from collections.abc import Callable, Hashable, Sequence

import torch


class Graphs:
    """Runs functions as recorded graphs, one for each key; on other devices it calls them.

    A recorded function reads and writes tensors that stay where they are, and nothing of what it does may depend on
    their values.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, function: Callable[[], None], moved: Sequence[torch.Tensor] = ()) -> None:
        """Do what the function does.

        Args:
            key: Names the function with all it depends on besides the values of tensors.
            function: Called on the first run of the key, on a CPU always.
            moved: Tensors that the function both reads and writes: a recording calls it once to warm up, which must not
                count.
        """
        if self.device.type != "cuda":
            function()
            return
        if key not in self._recorded:
            self._recorded[key] = self._record(function, moved)
        self._recorded[key].replay()

    def _record(self, function: Callable[[], None], moved: Sequence[torch.Tensor]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in moved]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries allocate at their first call, which a recording must not hold
            function()
        torch.cuda.current_stream().wait_stream(side)
        for tensor, value in zip(moved, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        shared = next(iter(self._recorded.values())).pool() if self._recorded else None
        with torch.cuda.graph(graph, pool=shared):
            function()
        return graph
