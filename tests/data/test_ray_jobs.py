"""Addresses of Ray clusters that cannot be reached, which is said at once and without starting Ray."""

from __future__ import annotations

import socket
import sys

import pytest

from vwm.data.ray_jobs import connect_ray


def test_an_address_where_nothing_answers_is_an_error_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # it is not even imported
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            with pytest.raises(
                ConnectionError, match=rf"--ray-address {form}: nothing answers there .*ray start --head"
            ):
                connect_ray(form, workers=2)
    for wrong in ("10.0.0.1", "host:", ":6379", "host:port", "host:70000"):
        with pytest.raises(ValueError, match="--ray-address must be HOST:PORT"):
            connect_ray(wrong, workers=2)
    with pytest.raises(ImportError, match=r"pip install 'vwm\[ray\]'"):
        connect_ray(None, workers=2)
