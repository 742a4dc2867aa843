"""Choose device and precision, with the reason."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefcli.errors import InputError, did_you_mean, one_line
from prefcli.options import DEVICES, PRECISION_NAMES, PRECISIONS

if TYPE_CHECKING:
    import torch


AS_ASKED = "as asked"


@dataclass(frozen=True)
class Placement:
    """Device and precision of the computation, and the reason for them.

    Attributes
    ----------
    device:
        The torch device.
    precision:
        ``fp32``, ``fp16`` or ``bf16``: what autocast uses; trained weights are float32 in any case.
    reason:
        Why, in words.
    """

    device: torch.device
    precision: str
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        import torch

        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]

    @property
    def scaled(self) -> bool:
        """Whether gradients need a loss scale: in float16 small ones vanish without it."""
        return self.precision == "fp16"

    def __str__(self) -> str:
        return f"{self.device}, {self.precision} ({self.reason})"


@dataclass(frozen=True)
class DeviceRequest:
    """Device and precision as the user gave them; torch is imported only when they are placed."""

    device: str = "auto"
    precision: str = "auto"
    local_rank: int = 0

    @functools.cached_property
    def placement(self) -> Placement:
        """See :func:`place`."""
        return place(self.device, self.precision, self.local_rank)


def place(device: str = "auto", precision: str = "auto", local_rank: int = 0) -> Placement:
    """Choose device and precision.

    Raises
    ------
    InputError
        If the device does not exist here, or cannot compute in the precision asked for.
    """
    import torch

    precision = PRECISION_NAMES.get(precision, precision)
    if precision not in PRECISIONS:
        raise InputError(f"no precision {precision!r}", hint=f"Use one of {', '.join(PRECISIONS)}.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        device = f"cuda:{local_rank % torch.cuda.device_count()}"
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except Exception as error:
        raise InputError(
            f"no device {device!r} here: {one_line(error, 80)}",
            hint=did_you_mean(device, DEVICES) or "Use --device auto, cpu or cuda.",
        ) from None
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if precision != "auto":
        if precision == "bf16" and where.type == "cuda" and not torch.cuda.is_bf16_supported():
            raise InputError("this GPU cannot compute in bf16", hint="Use --precision fp16 or fp32.")
        return Placement(where, precision, AS_ASKED)
    return Placement(where, *_best_precision(where))


def for_language_models(placement: Placement) -> Placement:
    """bf16 instead of an fp16 that ``auto`` chose, where the GPU has it.

    Language models are trained in bf16, and some (Gemma) reach values that float16 cannot represent.
    """
    import torch

    auto_fp16 = placement.precision == "fp16" and placement.reason != AS_ASKED
    if not auto_fp16 or not torch.cuda.is_bf16_supported(including_emulation=False):
        return placement
    return Placement(placement.device, "bf16", "language models overflow in fp16, and this GPU has bf16")


def _best_precision(device: torch.device) -> tuple[str, str]:
    import torch

    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if major >= 7:
            return "fp16", "with a loss scale: this GPU has half-precision units"
        return "fp32", f"this GPU (compute capability {major}.{minor}) gains nothing from fp16"
    if device.type == "cpu" and has_bf16_matrix_units():
        return "bf16", "this CPU has bf16 matrix units (AMX)"
    return "fp32", f"this {device.type.upper()} gains nothing from half precision"


def has_bf16_matrix_units() -> bool:
    """Whether oneDNN may use AMX: without it, autocast to bf16 was measured 1.4 to 3.3 times slower than float32."""
    isa_limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if isa_limit != "DEFAULT" and "AMX" not in isa_limit:
        return False
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return False
