"""The backend that the golden tests run on: `CC_TEST_BACKEND`, by default the dispatcher's choice."""

from __future__ import annotations

import os

import pytest

from cc_kernels import use_backend


@pytest.fixture(autouse=True)
def chosen_backend():
    with use_backend(os.environ.get("CC_TEST_BACKEND", "auto")):
        yield
