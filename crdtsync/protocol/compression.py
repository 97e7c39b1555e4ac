"""zstd for what travels in bulk (RFC 8878), with the size of what comes out bounded before any of it does.

A few hundred bytes can stand for gigabytes. So whoever sends something packed says how large it is; that is held against
a limit first, then the decompressor is told to stop there, and its window is bounded as well.
"""

from __future__ import annotations

import sys
from typing import Final

from crdtsync.errors import RemoteProtocolError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 1  # 7 MB of commits in frames of 256 kB: 7 times smaller at 1.3 GB/s; level 3 gains nothing
WINDOW_LOG_MAX: Final = 23  # 8 MiB, as much as a frame holds: what a frame may make us allocate beside its output
_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX}


def pack(data: bytes) -> bytes:
    """`data` as one zstd frame. Equal bytes give equal bytes, with one version of zstd."""
    return zstd.compress(data, LEVEL)


def unpack(packed: bytes, size: int, *, size_max: int) -> bytes:
    """The `size` bytes that `packed` is said to hold.

    Raises:
        RemoteProtocolError: If that is more than `size_max`, or not what it holds.
    """
    if size > size_max:
        raise RemoteProtocolError(f"{size} bytes are packed, the limit is {size_max}", bytes=size, limit=size_max)
    decompressor = zstd.ZstdDecompressor(options=_OPTIONS)
    try:
        data = decompressor.decompress(packed, max_length=size + 1)
    except (zstd.ZstdError, MemoryError, EOFError) as error:
        raise RemoteProtocolError(f"not what zstd packs: {error}", bytes=len(packed)) from error
    if len(data) != size or not decompressor.eof or decompressor.unused_data:
        raise RemoteProtocolError(f"{len(packed)} packed bytes do not hold {size}", bytes=len(packed))
    return data
