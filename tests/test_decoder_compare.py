"""Verdicts on a decoder run beside the expected one, without running a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.csim_decoder import TOLERANCE
from codegen.decoder_compare import (
    relative_errors,
    token_difference,
)
from codegen.decoder_golden import DecoderGolden


def choice(logits: list[float], token: int) -> DecoderGolden:
    """A run that chose one token from these logits."""
    return DecoderGolden(np.array([0]), np.array([token]), np.array([logits], np.float32), {})


@pytest.mark.parametrize(
    ("own", "token", "flipped", "verdict"),
    [
        ([1.00001, 1.00003, -8.0], 1, False, "tie"),
        ([1.00001, 1.00003, -8.0], 1, True, "tie"),
        ([0.5, 1.0, -8.0], 1, True, "after a flip"),
        ([0.5, 1.0, -8.0], 1, False, "mismatch"),
        ([1.00002, 1.00001, -8.0], 1, True, "mismatch"),  # not the largest of its own
        ([1.00003, 1.00001, -8.0], 2, True, "mismatch"),
        ([1.0, 1.0, -8.0], 1, True, "mismatch"),  # the lowest of equals is right
        ([np.nan, 1.0, -8.0], 1, False, "mismatch"),
    ],
)
def test_other_token_is_a_tie_or_follows_a_flip_or_is_wrong(
    own: list[float], token: int, flipped: bool, verdict: str
) -> None:
    wanted = choice([1.00002, 1.00001, -8.0], 0)
    found = token_difference(wanted, choice(own, token), 0, TOLERANCE, flipped)
    assert found is not None
    assert (found["expected"], found["found"], found["verdict"]) == (0, token, verdict)
    assert token_difference(wanted, wanted, 0, TOLERANCE, flipped) is None


def test_errors_that_are_not_numbers_count() -> None:
    wanted = np.ones((2, 3), np.float32)
    found = np.array([[1, 1, 1.5], [1, np.nan, 1]], np.float32)
    np.testing.assert_array_equal(relative_errors(found, wanted), [0.5, np.inf])
