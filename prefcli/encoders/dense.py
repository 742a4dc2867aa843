"""Linear layers and dropout of any encoder, faster on a CPU and otherwise the same.

Two things make PyTorch slower than the processor allows, and neither depends on the model:

- PyTorch's float32 matrix products go to MKL, which uses AVX-512 only on Intel's processors; on AMD's it was measured
  at half the rate of oneDNN, which PyTorch includes too. :class:`Linear` calls oneDNN there.
- PyTorch's dropout draws one number at a time from a serial generator; at 4 nanoseconds an element it can cost more
  than the matrix products around it. :class:`Dropout` draws 16 bits an element from a fast generator, seeded from
  PyTorch's.

Both replace ``torch.nn``'s by a change of the module's class, so parameters, their names, hooks and copies do not
change. Whatever they cannot do (other devices, other precisions) they leave to ``torch.nn``.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefcli.compute import devices

MIN_ROWS = 16
"""With fewer rows a product is bound by reading the weights, and calling oneDNN costs more than it saves."""


@functools.cache
def onednn_is_faster() -> bool:
    """Whether float32 products should go to oneDNN: it is available, and MKL would not use this processor's AVX-512.

    Decided by the kind of processor, not by timing, so that a repeated training gives the same bytes.
    """
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "intel" not in _processor()
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip().lower()
    except OSError:
        pass
    return platform.processor().lower()


@functools.cache
def multiplies_bf16() -> bool:
    """Whether the processor has matrix units for bfloat16, which are several times as fast as float32 products."""
    return devices.has_bf16_matrix_units()


def uses_onednn(tensor: Tensor) -> bool:
    """Whether oneDNN multiplies this tensor: float32 on a CPU where it is the faster library."""
    return tensor.dtype is torch.float32 and tensor.device.type == "cpu" and onednn_is_faster()


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` without autograd, by oneDNN where that is faster.

    oneDNN copies ``x`` ``[..., k]`` unless it is contiguous. ``weight`` ``[n, k]`` is to be contiguous or the transpose
    of a contiguous matrix: other strides make oneDNN a thousand times slower.
    """
    if uses_onednn(x):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return nn.functional.linear(x, weight, bias)


class _LinearFunction(torch.autograd.Function):
    """oneDNN's linear layer with its gradients (PyTorch's binding of it has none for dense tensors)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return fast_linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_output = grad_output.contiguous()
        rows = grad_output.reshape(-1, grad_output.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            grad_x = fast_linear(grad_output, weight.t())
        if needs_weight:
            # The only way to oneDNN's product over rows; the conversions copy the activations.
            weight_and_bias = torch.ops.aten.mkldnn_linear_backward_weights(
                rows.to_mkldnn(), x.reshape(-1, x.shape[-1]).contiguous().to_mkldnn(), weight, False
            )
            grad_weight = weight_and_bias[0].to_dense()
        if needs_bias:
            grad_bias = rows.sum(dim=0)
        return grad_x, grad_weight, grad_bias


class Linear(nn.Linear):
    """``torch.nn.Linear`` whose float32 products on a CPU go to oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            not uses_onednn(x)
            or self.weight.dtype is not torch.float32
            or not self.weight.is_contiguous()
            or x.numel() < MIN_ROWS * self.in_features
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(x)
        product: Tensor = _LinearFunction.apply(x, self.weight, self.bias)
        return product


class DropoutMasks:
    """Random dropout masks of any shape, from the seed of a generator (SFC64).

    The probability is rounded to 1/65,536 (0.1 becomes 0.100006); kept elements are scaled by the share that is really
    kept, so the mean is exact. Drawing the seed from PyTorch's generator (:meth:`seeded`) makes the masks part of
    everything that keeps or restores that generator's state: checkpoints of a run, recomputed activations.
    """

    def __init__(self, probability: float, seed: int) -> None:
        steps = round(probability * 2**16)
        self.scale = 2**16 / (2**16 - steps) if steps < 2**16 else 0.0
        """What kept elements are multiplied by."""
        self._drops_all = steps == 2**16
        self._threshold = steps - 2**15
        self._generator = np.random.SFC64(seed)

    @staticmethod
    def seeded(probability: float) -> DropoutMasks:
        return DropoutMasks(probability, int(torch.randint(2**62, ())))

    def draw(self, shape: Sequence[int]) -> Tensor:
        """A mask: 1 for what is kept, 0 for what is dropped; uint8, whose kernels are faster than bool's."""
        count = math.prod(shape)
        if self._drops_all:
            return torch.zeros(*shape, dtype=torch.uint8)
        # Four elements from each 64-bit number.
        random = torch.from_numpy(np.asarray(self._generator.random_raw((count + 3) // 4)).view(np.int16)[:count])
        return random.ge_(self._threshold).to(torch.uint8).view(*shape)


def apply_mask(x: Tensor, mask: Tensor, scale: float) -> Tensor:
    """``x * mask * scale``, a new tensor."""
    # Converting first and multiplying in place is three times faster than a product of mixed types.
    return mask.to(x.dtype).mul_(x).mul_(scale)


class _DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        masks = DropoutMasks.seeded(probability)
        mask = masks.draw(x.shape)
        ctx.save_for_backward(mask)
        ctx.scale = masks.scale
        return apply_mask(x, mask, masks.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return apply_mask(grad_output, mask, ctx.scale), None


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` with a faster generator on a CPU; the same distribution, other draws."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or self.inplace or x.device.type != "cpu" or not x.is_floating_point():
            return super().forward(x)
        dropped: Tensor = _DropoutFunction.apply(x, self.p)
        return dropped


def accelerate(module: nn.Module) -> None:
    """Replace the classes of a module's linear and dropout layers, in place. Its state dict does not change."""
    for layer in module.modules():
        if type(layer) is nn.Dropout:
            layer.__class__ = Dropout
        elif type(layer) is nn.Linear and onednn_is_faster():
            layer.__class__ = Linear
