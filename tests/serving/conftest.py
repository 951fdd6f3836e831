"""Models, their folders, and engines, each made once for a session."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def model():
    from served import make_model

    return make_model()


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    model.save_pretrained(path, serve=True)
    return path


@pytest.fixture(scope="session")
def engine(folder):
    """An engine with the default options of the tests."""
    from served import start

    return start(folder)
