"""Fixtures of the model tests."""

from __future__ import annotations

import sys

import pytest
from gloo_pool import GlooPool
from model_pairs import ARCHITECTURES


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Every supported architecture."""
    return request.param


@pytest.fixture(scope="session")
def _pool():
    held = []
    yield held
    for pool in held:
        pool.close()


@pytest.fixture
def two_processes(_pool):
    """Two processes with gloo between them; started when a test first asks, and anew after a failure."""
    if not (_pool and _pool[-1].alive):
        _pool.append(GlooPool(2))
    return _pool[-1]


@pytest.fixture(autouse=True)
def _compiled_code_is_forgotten():
    """A test that compiles leaves nothing behind: code counts towards the recompile limit of the tests after it."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["stats"]:
        dynamo.reset()
        dynamo.utils.counters.clear()
