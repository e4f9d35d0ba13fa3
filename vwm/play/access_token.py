"""A token that a page must know where other machines can reach the server."""

from __future__ import annotations

import hmac
import ipaddress

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def token_middleware(token: str) -> Middleware:
    """Make middleware that serves only pages that were opened with the token, and remembers them by a cookie.

    Args:
        token: the value of ``token`` in the address that ``vwm play`` prints.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        cookie = f"vwm_token_{request.url.port}"  # browsers share cookies between the ports of a host
        if _equal(request.cookies.get(cookie, ""), token):
            return await handler(request)
        if request.path != "/" or not _equal(request.query.get("token", ""), token):
            raise web.HTTPForbidden(text="open the address that vwm play printed; it ends in ?token=...")
        response = await handler(request)
        response.set_cookie(cookie, token, httponly=True, samesite="Strict")
        return response

    return check


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a listening address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())
