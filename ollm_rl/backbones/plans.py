"""Attention for passes whose shapes differ from pass to pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_plans() -> Iterator[None]:
    """Within this context attention is never cuDNN's, which torch prefers on an H100.

    It plans for every new shape on the host, 0.05 s forward and 0.07 s backward there: as long as all else in a pass of
    a small model. torch's own kernels take any shape at once. The backward pass uses the forward pass's kernel, so it
    may come later.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
