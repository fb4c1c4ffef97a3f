"""Passes with gradient through a backbone with a LoRA as CUDA graphs.

A model of 100M parameters is computed faster than the host starts its kernels, of which a pass with gradient has
thousands. A recorded pass is started as one. It has a fixed shape, so passes are padded to one of a few.

Letters: B rows, T tokens, H hidden.
"""

import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ollm_rl.backbones.loading import context_length
from ollm_rl.backbones.lora_products import LoraProducts
from ollm_rl.decode.graphs import warm_up
from ollm_rl.decode.prompt_attention import attends_causally, sees_all, use_causal_attention
from ollm_rl.decode.row_cache import supported_layer_types
from ollm_rl.errors import RunWarning, one_line

SHORTEST = 32  # tokens
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1  # relative; rounding in bfloat16 makes 0.01 of a gradient, a wrong pass 1


def padded_length(length: int) -> int:
    """Tokens of a recorded pass for ``length`` tokens: at most a quarter more, of four lengths per power of two."""
    step = max(SHORTEST, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


class RecordedPass:
    """A pass of one shape, and its gradient.

    The tensors that autograd keeps lie in the pool, so another pass of that pool overwrites them. Gradients are copies,
    because autograd adds several passes up in the tensors that it gets: those of ``torch.cuda.make_graphed_callables``
    would be overwritten.

    Args:
        lora: Computes the pass.
        shape: B and T.
        pool: Memory that several passes share.
    """

    def __init__(self, lora: LoraProducts, shape: tuple[int, int], pool: Any) -> None:
        # The same memory, but no part of a graph that autograd keeps of an earlier pass on another stream.
        self._weights = [weight.detach().requires_grad_() for weight in lora.weights]
        self._input_ids = torch.zeros(shape, dtype=torch.long, device=self._weights[0].device)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads, such as those that watch over processes on other GPUs, may go on meanwhile.
        recording: dict[str, Any] = {"pool": pool, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(self._forward, **recording):
            hidden = lora.hidden_states(self._input_ids, self._weights)
        self._gradient = torch.zeros_like(hidden)
        with torch.cuda.graph(self._backward, **recording):
            gradients = gradients_of(hidden, self._weights, self._gradient)
            self._gradients = torch.cat([gradient.flatten() for gradient in gradients])
        self._hidden = hidden.detach()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The hidden states h_t: token ids (B, T) -> (B, T, H)."""
        self._input_ids.copy_(input_ids)
        self._forward.replay()
        return self._hidden.clone()

    def backward(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of the LoRA's weights by that of h_t, (B, T, H)."""
        self._gradient.copy_(gradient)
        self._backward.replay()
        parts = self._gradients.clone().split([weight.numel() for weight in self._weights])
        return [part.view(weight.shape) for part, weight in zip(parts, self._weights, strict=True)]


class _Replay(torch.autograd.Function):
    """A recorded pass as an operation of autograd."""

    @staticmethod
    def forward(
        ctx: Any, passes: "RecordedPasses", recorded: RecordedPass, input_ids: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        """The weights are arguments because autograd asks for their gradients; the recording reads them itself."""
        # Not ``ctx`` itself: in a circle of references, the memory of the recordings would wait for Python's collector.
        ctx.passes, ctx.recorded, ctx.turn = passes, recorded, object()
        passes.latest = ctx.turn
        return recorded.forward(input_ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients by argument."""
        if ctx.passes.latest is not ctx.turn:
            raise RuntimeError("another recorded pass has overwritten this one; take its gradient before the next pass")
        return None, None, None, *ctx.recorded.backward(gradient)


class RecordedPasses:
    """A backbone with a LoRA, for passes with gradient of at most ``tokens`` tokens, on CUDA.

    A pass is recorded when one of its shape is first computed, and again when weights have moved. `LoraProducts`
    computes what is not recorded: passes where attention needs a mask or that are too large, and all if recording fails
    or the first recorded pass has other values.

    Args:
        lora: Computes what is recorded.
        tokens: Maximum tokens of a pass, padding included.
    """

    def __init__(self, lora: LoraProducts, tokens: int) -> None:
        self.lora, self.tokens = lora, tokens
        self.latest: Any = None  # identifies the operation whose gradient can be taken
        self._context, self._works = context_length(lora.backbone), True
        self._read = list(lora.backbone.parameters())
        self._forget()

    def hidden_states(self, input_ids: torch.Tensor) -> torch.Tensor:
        """As `LoraProducts.hidden_states`; its gradient can be taken until the next call."""
        count, length = input_ids.shape
        padded = max(length, min(padded_length(length), self._context))
        shape = self.tokens // padded, padded
        recorded = self._pass_of(shape) if count <= shape[0] else None
        if recorded is None:
            return self.lora.hidden_states(input_ids)
        # What follows a row's end changes nothing before it, nor do other rows.
        padding = (0, padded - length, 0, shape[0] - count)
        input_ids = torch.nn.functional.pad(input_ids, padding)
        hidden: torch.Tensor = _Replay.apply(self, recorded, input_ids, *self.lora.weights)
        return hidden[:count, :length]

    def _pass_of(self, shape: tuple[int, int]) -> RecordedPass | None:
        if self._works and self._places != _places(self._read):  # as when an engine has joined layers
            self._forget()
        if self._works and shape not in self._by_shape:
            self._by_shape[shape] = self._record(shape)
        return self._by_shape.get(shape)

    def _forget(self) -> None:
        """Drop all recordings, which read weights where they were, and their memory."""
        self._by_shape: dict[tuple[int, int], RecordedPass | None] = {}
        self._places = _places(self._read)
        self._pool = torch.cuda.graph_pool_handle()  # the former one ends with its recordings

    @torch.enable_grad()
    def _record(self, shape: tuple[int, int]) -> RecordedPass | None:
        backbone = self.lora.backbone
        config = backbone.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        if not self._attends_causally or not sees_all(window, supported_layer_types(backbone), shape[1]):
            return None
        try:
            first = not any(self._by_shape.values())
            with use_causal_attention(config):
                if first:
                    warm_up(self._short_pass)
                recorded = RecordedPass(self.lora, shape, self._pool)
            if not first or self._agrees(recorded, shape):
                return recorded
            problem = "its values or gradients are others"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model does that cannot be recorded
            problem = f"{type(error).__name__}: {one_line(error)}"
        self._works = False
        self._forget()
        message = (
            f"passes of {type(backbone).__name__} cannot be recorded as CUDA graphs ({problem}); updates are slower"
        )
        warnings.warn(message, RunWarning, stacklevel=2)
        return None

    @cached_property
    def _attends_causally(self) -> bool:
        return attends_causally(self.lora.backbone)

    def _short_pass(self) -> None:
        tokens = torch.zeros(2, SHORTEST, dtype=torch.long, device=self.lora.weights[0].device)
        hidden = self.lora.hidden_states(tokens)
        gradients_of(hidden, self.lora.weights, torch.zeros_like(hidden))

    def _agrees(self, recorded: RecordedPass, shape: tuple[int, int]) -> bool:
        """Whether one row of random tokens has the same h_t and gradient as without a recording."""
        generator = torch.Generator().manual_seed(0)  # the run's own numbers stay as they are
        vocab_size = self.lora.backbone.get_input_embeddings().weight.shape[0]
        tokens = torch.randint(vocab_size, (1, shape[1]), generator=generator).to(self.lora.weights[0].device)
        expected = self.lora.hidden_states(tokens)
        direction = torch.randn(expected.shape, generator=generator).to(expected)

        def whole(row: torch.Tensor) -> torch.Tensor:
            others = row.new_zeros(shape[0] - 1, *row.shape[1:])
            return torch.cat([row, others])

        def flat(gradients: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.cat([gradient.flatten() for gradient in gradients])

        found = recorded.forward(whole(tokens))[:1], flat(recorded.backward(whole(direction)))
        right = expected.detach(), flat(gradients_of(expected, self.lora.weights, direction))
        tolerance = TOLERANCE if expected.dtype == torch.float32 else HALF_TOLERANCE
        return all(
            bool((one - other).norm() <= tolerance * other.norm()) for one, other in zip(found, right, strict=True)
        )


def _places(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def gradients_of(
    hidden: torch.Tensor, weights: Sequence[torch.Tensor], gradient: torch.Tensor
) -> Sequence[torch.Tensor]:
    """Gradients of the weights by that of h_t, (B, T, H); zeros where a weight has none."""
    return torch.autograd.grad(hidden, weights, gradient, materialize_grads=True)
