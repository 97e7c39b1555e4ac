"""Feature bits: what a version can read. They travel in Hello; a kind of message or event is used once those who must
read it have its bit (design 7). A bit is never reused."""

from __future__ import annotations

from typing import Final

LEASES: Final = 1 << 0  # peer messages 20 to 22: quorum leases
MEMBERSHIP: Final = 1 << 1  # peer messages 30 to 35, events 17 to 19: members come and go
LIMITS: Final = 1 << 2  # event kinds 22 to 26, peer message 40: limits
BUNDLES: Final = 1 << 3  # peer message 50: several messages in one frame
ZSTD: Final = 1 << 4  # frame kind 51: a frame packed by zstd

OURS: Final = LEASES | MEMBERSHIP | LIMITS | BUNDLES | ZSTD  # what this version says of itself
