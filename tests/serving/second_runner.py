"""A pytest plugin that lets vLLM's second model runner (V2) run on a CPU, with its Triton kernels interpreted.

    pytest -p second_runner tests/serving/test_tokens.py

vLLM looks for a `cpu` backend of Triton, which the wheels lack. The interpreter needs none, so a stand-in is enough.
"""

from __future__ import annotations

import os
from types import SimpleNamespace


def pytest_configure(config):
    """Before vLLM and Triton are imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    from triton.backends import backends

    driver = SimpleNamespace(is_active=lambda: True)
    backends.setdefault("cpu", SimpleNamespace(driver=driver, compiler=None))
