"""Fixtures of the model tests."""

from __future__ import annotations

import pytest
from model_pairs import ARCHITECTURES


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Every supported architecture."""
    return request.param
