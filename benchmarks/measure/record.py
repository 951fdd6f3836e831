"""What a record of measurements says about where it was made, and how it is kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

import cc_kernels
from cc_kernels.launch import HAS_TRITON, triton
from cc_model.files import write_text

ROOT = Path(__file__).parents[2]


def _answer(command: list[str]) -> str | None:
    try:
        return (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
        )
    except (OSError, subprocess.CalledProcessError):  # another maker's GPU; no git checkout
        return None


def facts(device: torch.device) -> dict[str, Any]:
    """Versions, the commit with its date, and the device.

    Example:
        >>> facts(torch.device("cpu"))["torch"] == torch.__version__
        True
    """
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": triton.__version__ if HAS_TRITON else None,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cc_kernels": cc_kernels.__version__,
        "commit": _answer(["git", "describe", "--always", "--dirty", "--abbrev=10"]),
        "committed": _answer(["git", "show", "--no-patch", "--format=%cI", "HEAD"]),
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} of {os.cpu_count()} threads",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "processors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "driver": _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        }
    return found


def save(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Write `record` as JSON, whole or not at all; folders are made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/new/record.json", {"kind": "example"})
        ...     Path(folder, "new", "record.json").read_text()
        '{\\n "kind": "example"\\n}\\n'
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def synchronize(device: torch.device) -> None:
    """Wait for the device; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
