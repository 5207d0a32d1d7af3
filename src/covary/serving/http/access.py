"""Who gets in: host names, web pages and keys."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from covary.serving.http.refusals import Refused
from covary.serving.http.settings import ServeSettings

HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\\\s]+)(?::(\d{0,5}))?", re.ASCII)
DEFAULT_PORTS = {"http": "80", "https": "443"}
Headers = Iterable[tuple[bytes, bytes]]


class Access:
    """Decides on the headers of a request.

    Args:
        settings: address, keys.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._loopback, self._own = settings.loopback, settings.host.lower()
        self._api, self._operator = _digests(settings.api_key), _digests(settings.operator_key or settings.api_key)

    @property
    def has_operator(self) -> bool:
        """Whether a key tells operators from everybody."""
        return bool(self._operator)

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Refuses what a web page of somebody else makes a browser send.

        Raises:
            Refused: 400, a host name that is not this service's; 403, another page's origin.
        """
        host = headers.get("host")
        # Only HTTP/1.0 may leave it out, which no browser speaks.
        if self._loopback and host is not None:
            found = HOST.fullmatch(host.lower())
            # A page in somebody's browser may point its own name at this machine.
            if found is None or found[1].strip("[]") not in ("localhost", "127.0.0.1", "::1", self._own):
                raise Refused(400, f"the host name {host[:60]!r}", "localhost")
        if (origin := headers.get("origin")) is not None:
            scheme, _, place = origin.lower().partition("://")
            if scheme not in DEFAULT_PORTS or _place(place, scheme) != _place((host or "").lower(), scheme):
                raise Refused(
                    403, f"a request by the web page of {origin[:60]!r}", "requests by its own page"
                )

    def check_client(self, raw: Headers) -> None:
        """Refuses whoever lacks the API key, if there is one."""
        _check(raw, self._api)

    def check_operator(self, raw: Headers) -> None:
        """Refuses whoever lacks the operator's key, or where there is none the API key."""
        _check(raw, self._operator)


def _place(authority: str, scheme: str) -> tuple[str, str] | None:
    found = HOST.fullmatch(authority)
    return None if found is None else (found[1], found[2] or DEFAULT_PORTS[scheme])


def _digests(key: str | None) -> list[bytes]:
    if key is None:
        return []
    encodings = [key.encode()]
    with suppress(UnicodeEncodeError):
        # Clients write what is not ASCII in one of two ways.
        encodings.append(key.encode("latin-1"))
    return [_digest(encoding) for encoding in encodings]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check(raw: Headers, digests: list[bytes]) -> None:
    if not digests:
        return
    key = b""
    for name, value in raw:
        if name == b"authorization":
            kind, _, token = value.partition(b" ")
            key = token if kind.lower() == b"bearer" else key
        elif name == b"x-api-key":
            key = key or value
    # Digests are of one length, so a comparison takes the same time whatever was sent; and all are made.
    if not sum(hmac.compare_digest(_digest(key), digest) for digest in digests):
        raise Refused(401, "no valid API key", "Authorization: Bearer KEY")


class Guard:
    """ASGI middleware: `Access.check_page` before anything else.

    Args:
        app: the application behind it.
        access: see `Access`.
        refuse: from status and sentence to an ASGI response.
    """

    def __init__(self, app: Any, access: Access, refuse: Any) -> None:
        self.app, self._access, self._refuse = app, access, refuse

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            try:
                self._access.check_page({k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]})
            except Refused as problem:
                await self._refuse(problem.status, str(problem))(scope, receive, send)
                return
        await self.app(scope, receive, send)
