"""The annotations of the package are checked while tests run."""

from __future__ import annotations

import os

import jaxtyping
import numpy as np
import pytest

from mico_jax.data.sources.shards import files_of
from mico_jax.evaluation import metrics

pytestmark = pytest.mark.skipif(
  os.environ.get("MICO_JAX_TEST_TYPES") == "off", reason="checks are off"
)


@pytest.mark.parametrize(
  ("scores", "relevant"),
  [
    (np.zeros((2, 2)), np.ones((2, 3), bool)),  # two lengths of one axis
    (np.zeros((2, 2)), np.ones((2, 2))),
    (np.zeros(2), np.ones((2, 2), bool)),
  ],
)
def test_shapes_are_checked(scores, relevant):
  with pytest.raises(jaxtyping.TypeCheckError):
    metrics.average_precision(scores, relevant)


def test_plain_types_are_checked():
  with pytest.raises(Exception, match="violates type hint"):
    files_of(3, "a")  # type: ignore[arg-type]
