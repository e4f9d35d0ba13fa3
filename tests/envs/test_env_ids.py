"""Ids that name no environment are refused with a close one, before a recording starts processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vwm.envs.env_ids import check_env_id
from vwm.envs.recording import record_dataset


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"no environment CartPol-v1 \(did you mean CartPole-v1\?\)\. Known ids: "),
        ("CartPole-v99", r"no environment CartPole-v99 \(did you mean CartPole-v"),
        ("vwm/TwoRoom-v0", r"did you mean vwm/TwoRooms-v0\?"),
        ("Nothing/Alike-v5", r"no environment Nothing/Alike-v5\. Known ids: "),
        ("no_such_module:X-v0", "there is no module 'no_such_module'"),
        ("", "Malformed environment ID"),
    ],
)
def test_an_unknown_id_is_refused(env_id: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, ImportError), match=message):
        record_dataset(env_id, tmp_path / "data", frames=10)
    assert not (tmp_path / "data").exists()


def test_an_environment_of_a_known_id_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vwm.envs.env_ids.make_env", None)
    for env_id in ("CartPole-v1", "vwm/TwoRooms-v0"):
        check_env_id(env_id)
