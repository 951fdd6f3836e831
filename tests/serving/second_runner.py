"""Lets vLLM's second model runner (V2) run on a CPU: its Triton kernels are interpreted.

vLLM looks for a `cpu` backend of Triton, which the wheels lack. The interpreter needs none, so a stand-in is enough.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"

from triton.backends import backends  # noqa: E402

driver = SimpleNamespace(is_active=lambda: True)
backends.setdefault("cpu", SimpleNamespace(driver=driver, compiler=None))
