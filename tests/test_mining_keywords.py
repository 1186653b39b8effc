"""Scores by a list of words."""

from __future__ import annotations

import numpy as np
import pytest

from ntk_jax.errors import UserError
from ntk_jax.mining.keywords import keyword_scores


def test_keywords_cover_words():
    texts = ["The Patient took two tablets", "blood  pressure and diagnosis", "impatient", ""]
    found = keyword_scores(texts, ["patient", "tablet*", "blood pressure", "diagnos*"])
    np.testing.assert_allclose(found, [2 / 5, 3 / 4, 0, 0])
    assert keyword_scores(["a.b axb"], ["a.b"])[0] == pytest.approx(1 / 3), "a dot is a dot"
    for wrong in ([], [" "], ["*"]):
        with pytest.raises(UserError, match="keyword"):
            keyword_scores(texts, wrong)
