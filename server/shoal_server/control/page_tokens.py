"""Page tokens: where the next page begins, opaque to clients and checked when they come back."""

from __future__ import annotations

import base64
import binascii

from shoal_server.errors import InvalidRequest

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000


def check_page_size(size: int) -> int:
    """The size to use; 0 means the default.

    Raises:
        InvalidRequest: it is out of range.
    """
    if not 0 <= size <= MAX_PAGE_SIZE:
        raise InvalidRequest.of("page_size", f"is {size}; allowed are 1 to {MAX_PAGE_SIZE}")
    return size or DEFAULT_PAGE_SIZE


def encode_page_token(kind: str, position: str) -> str:
    """A token for `position`; `kind` tells the tokens of one listing from another's."""
    return base64.urlsafe_b64encode(f"{kind}:{position}".encode()).decode().rstrip("=")


def decode_page_token(kind: str, token: str) -> str:
    """The position in a token; empty for the first page.

    Raises:
        InvalidRequest: the token is not from this listing.
    """
    if not token:
        return ""
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        text = ""
    found, _, position = text.partition(":")
    if found != kind or not position:
        raise InvalidRequest.of("page_token", "is not from an earlier response of this listing")
    return position
