"""The C library's allocator, told to keep freed memory: every pass asks for the same blocks again."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Keeps blocks of up to 32 MiB that the process frees, for its next pass; True where the allocator took it.

    Without it glibc returns activations to the system after every pass and the next one touches every page anew, about
    a tenth of the time on a CPU. It changes the whole process, so programs call it, the library never does.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_MMAP_THRESHOLD, 2**25))
