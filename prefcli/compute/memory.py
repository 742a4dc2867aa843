"""Keep the memory that PyTorch frees on a CPU, instead of giving it back and asking for it again; or give it back.

glibc maps large blocks afresh for every tensor and unmaps them when it goes; the kernel then clears every page at its
first touch. In training, where tensors of tens of megabytes come and go in every layer, that can be a third of the
time.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_NO_LIMIT = 2**31 - 1
_PADDING = 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to serve large blocks from its heap and to keep what is freed; for the rest of the process.

    The process then holds its peak until it ends.

    Returns
    -------
    Whether it was done: only Linux with glibc has the setting, elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        settings = ((_M_MMAP_THRESHOLD, _NO_LIMIT), (_M_TRIM_THRESHOLD, _NO_LIMIT), (_M_TOP_PAD, _PADDING))
        return all(library.mallopt(name, value) for name, value in settings)
    except (OSError, AttributeError):  # another C library
        return False


def return_freed_memory() -> None:
    """Give freed memory between blocks in use back to the system; glibc does that only when it is asked to."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
