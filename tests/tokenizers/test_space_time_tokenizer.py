"""Properties specific to the space-time tokenizer; those of every tokenizer are in test_contract.py."""

import pytest

from vwm.tokenizers.space_time_tokenizer import SpaceTimeTokenizer


def test_rejects_a_patch_size_that_does_not_divide_the_frame():
    with pytest.raises(ValueError, match="patch_size=5 must divide"):
        SpaceTimeTokenizer(image_size=(16, 16), patch_size=5)
