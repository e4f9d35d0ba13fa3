"""File systems of stores."""

from __future__ import annotations

import pytest

from vwm.core.remote_files import open_file_system


@pytest.mark.parametrize("address", ["memory://folder", "http://host/folder", "s3://bucket"])
def test_listings_are_not_kept(address: str) -> None:
    """Other processes write too: a checkpoint of theirs must be seen."""
    if address.startswith("s3"):
        pytest.importorskip("s3fs")
    assert not open_file_system(address).dircache.use_listings_cache
