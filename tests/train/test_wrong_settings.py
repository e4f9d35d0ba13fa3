"""Settings that a class or Lightning refuses end ``vwm fit`` with what they said, not with a traceback of a parser."""

from __future__ import annotations

from pathlib import Path

import pytest

from vwm.cli.configs import config_path
from vwm.train.fit import find_cause, fit_model

PIXELS = ["-c", config_path("dit/coinrun_pixels.yaml"), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.max_time", "soon"], "'soon'.*is not a valid duration"),
        (["--model.init_args.tokenizer.init_args.patch_size", "7"], "^patch_size=7 must divide image_size=64x64$"),
    ],
)
def test_a_setting_that_is_refused_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit_model([*PIXELS, "--run", str(tmp_path / "run"), *arguments])
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_the_cause_is_found_in_messages_about_unions_of_types() -> None:
    message = """Parser key "x":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'str'>, <class 'A'>]
  Errors:
    - Expected a <class 'str'>
    - size must be 1 or more,
      got 0
  Given value type: <class 'dict'>
  Given value: {}"""
    assert find_cause(message) == "size must be 1 or more,\n      got 0"
    assert find_cause("size must be 1 or more, got 0") == "size must be 1 or more, got 0"
