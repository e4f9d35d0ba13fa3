"""Check of the origin of requests: only the server's own pages may connect."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


def origin_middleware(host: str) -> Middleware:
    """Make middleware that rejects requests of other web sites.

    A page of another site could open a websocket to localhost, or let its own domain name resolve to 127.0.0.1 (DNS
    rebinding). Therefore the requested host must be an IP address or a name of this machine, and the origin of a
    websocket must be this server.

    Args:
        host: the listening address.
    """
    names = {"localhost", socket.gethostname().lower(), host.lower()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            requested = (urlsplit(f"//{request.host}").hostname or "").lower()
        except ValueError:
            raise web.HTTPBadRequest(text=f"the Host header {request.host!r} is no host") from None
        if requested not in names and not _is_ip_address(requested):
            raise web.HTTPForbidden(text=f"{requested!r} is not a name of this server: open its address, or localhost")
        origin = request.headers.get("Origin")
        # Browsers always send the origin of a websocket. Other programs may leave it out; the check cannot stop them.
        if origin is not None and origin.partition("://")[2].rstrip("/").lower() != request.host.lower():
            raise web.HTTPForbidden(text=f"pages of {origin} may not connect; open http://{request.host}/ itself")
        return await handler(request)

    return check


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
