"""What a token is."""

from __future__ import annotations

from typing import Final

from crdtsync.errors import InvalidRequestError

TOKEN_MAX: Final = 2**63 - 1  # what a BIGINT holds


def checked(token: int) -> int:
    """The token, if it is one. Raises InvalidRequestError."""
    if type(token) is not int or not 0 < token <= TOKEN_MAX:
        raise InvalidRequestError(
            f"{token!r} is no fencing token: those of leases are from 1 to {TOKEN_MAX}, and ctx.fence is 0 for a task "
            'whose partition is not "quorum"'
        )
    return token


def parsed(text: str) -> int | None:
    """The token that a text from outside says, None if it says none."""
    # isascii: int() also reads the digits of other scripts. The length: it reads thousands of them.
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(TOKEN_MAX)):
        return None
    token = int(text)
    return token if 0 < token <= TOKEN_MAX else None
