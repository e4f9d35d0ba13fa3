"""Who may talk to the server: pages of its own, and nobody else's."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def origin_middleware(host: str) -> Middleware:
    """Middleware that keeps other web sites out.

    A page of another site could open a websocket to localhost, or point its own name at 127.0.0.1. So the host
    must be this machine's by its own name, and a websocket must come from a page of this very server.
    """
    names = {"localhost", socket.gethostname().lower(), host.lower()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        called = (urlsplit(f"//{request.host}").hostname or "").lower()
        if called not in names and not _is_ip_address(called):
            raise web.HTTPForbidden(text=f"this server is not called {called!r}: open its address, or localhost")
        origin = request.headers.get("Origin")
        # browsers always name the origin of a websocket; only programs leave it out, and they need no page to lie
        if origin is not None and urlsplit(origin).netloc.lower() != request.host.lower():
            raise web.HTTPForbidden(text=f"pages of {origin} may not play here; open http://{request.host}/ itself")
        return await handler(request)

    return check


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
