"""Compile a recorded launch for a target without a GPU, and read registers, spills and instructions from the result."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from cc_kernels.aot.targets import Target
from cc_kernels.launch import Launch, triton

_POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
_POINTERS |= {torch.int32: "*i32", torch.int64: "*i64"}
_ALIGNMENT = 16  # bytes, or the divisor of an integer, on which Triton specialises a kernel
_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Specialization:
    """What Triton compiles a kernel for: argument types, constants, and the arguments divisible by 16."""

    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    divisible: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Report:
    """One kernel compiled for one target."""

    kernel: str
    constants: dict[str, Any]
    target: str
    dtype: str
    num_warps: int
    registers: int
    spills: int  # bytes of stack per thread, or registers spilled on AMD
    shared: int  # bytes
    occupancy: float
    wide_loads: int  # 128-bit global loads in the code
    wide_stores: int
    narrow_loads: int  # all other global loads
    narrow_stores: int
    tensor_core: int
    seconds: float
    problems: tuple[str, ...]


def specialize(launch: Launch) -> Specialization:
    """The specialization that Triton's launcher would choose for these arguments."""
    signature, constants, divisible = [], [], []
    for position, param in enumerate(launch.kernel.params):
        value = launch.arguments[param.name]
        if param.is_constexpr or value is None or (_is_one(value) and _specialized(param)):
            signature.append((param.name, "constexpr"))
            constants.append((position, value))
        elif isinstance(value, torch.Tensor):
            signature.append((param.name, _POINTERS[value.dtype]))
            if value.storage_offset() * value.element_size() % _ALIGNMENT == 0:
                divisible.append(position)
        elif isinstance(value, int):
            signature.append((param.name, "i32" if -(2**31) <= value < 2**31 else "i64"))
            if value % _ALIGNMENT == 0 and _specialized(param):
                divisible.append(position)
        else:
            signature.append((param.name, "fp32"))
    options = tuple((name, launch.arguments[name]) for name in _OPTIONS if name in launch.arguments)
    return Specialization(tuple(signature), tuple(constants), tuple(divisible), options)


def _is_one(value: Any) -> bool:
    return isinstance(value, int) and value == 1


def _specialized(param: Any) -> bool:
    return not param.do_not_specialize


def compile_for(kernel: Any, specialization: Specialization, target: Target) -> Any:
    """Triton's compiled kernel, with the code of every stage under `.asm`."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=kernel,
        signature=dict(specialization.signature),
        constexprs={(position,): value for position, value in specialization.constants},
        attrs={(position,): [["tt.divisibility", _ALIGNMENT]] for position in specialization.divisible},
    )
    gpu = GPUTarget(target.backend, target.arch, target.warp_size)
    return triton.compile(source, target=gpu, options=dict(specialization.options))


def _tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def sass(compiled: Any) -> str:
    """The machine code of a kernel compiled for NVIDIA, disassembled."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return _tool("nvdisasm", "-c", file.name)


def _nvidia_resources(compiled: Any) -> tuple[int, int]:
    """Registers and bytes of stack per thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump: expected a line with REG, STACK and LOCAL, got {usage!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _amd_resources(assembly: str) -> tuple[int, int]:
    """Vector registers per lane, and spilled registers."""
    metadata = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)", assembly)}
    spills = metadata["vgpr_spill_count"] + metadata["sgpr_spill_count"] + metadata["private_segment_fixed_size"]
    return metadata["vgpr_count"], spills


def _accesses(code: str, pattern: str, wide: str) -> tuple[int, int]:
    """How many instructions match `pattern`: those whose name contains `wide`, and the others."""
    counts = Counter(re.findall(pattern, code))
    wide_count = sum(count for name, count in counts.items() if wide in name)
    return wide_count, counts.total() - wide_count


def _constants(launch: Launch) -> dict[str, Any]:
    """The compile-time arguments, pointers left out (None) included."""
    names = [param.name for param in launch.kernel.params if param.is_constexpr]
    names += [name for name, value in launch.arguments.items() if value is None]
    return {name: launch.arguments[name] for name in names}


def inspect(launch: Launch, dtype: torch.dtype, target: Target) -> Report:
    """Compile one launch for one target and report what the code needs; problems are listed, not raised."""
    specialization = specialize(launch)
    started = time.perf_counter()
    compiled = compile_for(launch.kernel, specialization, target)
    seconds = time.perf_counter() - started
    if target.backend == "cuda":
        code = sass(compiled)
        registers, spills = _nvidia_resources(compiled)
        loads = _accesses(code, r"\bLDG(?:STS)?\.[\w.]+", ".128")  # LDGSTS copies to shared memory, asynchronously
        stores = _accesses(code, r"\bSTG\.[\w.]+", ".128")
        tensor_core = len(re.findall(r"\b(?:HMMA|HGMMA|DMMA|UTC\w*MMA)\b", code))
    else:
        code = compiled.asm["amdgcn"]
        registers, spills = _amd_resources(code)
        loads = _accesses(code, r"\b(?:global|buffer)_load_\w+", "dwordx4")
        stores = _accesses(code, r"\b(?:global|buffer)_store_\w+", "dwordx4")
        tensor_core = len(re.findall(r"\bv_mfma_\w+", code))
    num_warps = launch.arguments["num_warps"]
    problems = []
    if spills:
        problems.append(f"spills {spills}")
    if compiled.metadata.shared > target.shared_per_block:
        problems.append(f"shared memory {compiled.metadata.shared} > {target.shared_per_block}")
    return Report(
        kernel=launch.kernel.fn.__name__.strip("_"),
        constants=_constants(launch),
        target=target.name,
        dtype=str(dtype).removeprefix("torch."),
        num_warps=num_warps,
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        occupancy=target.occupancy(registers, compiled.metadata.shared, num_warps),
        wide_loads=loads[0],
        wide_stores=stores[0],
        narrow_loads=loads[1],
        narrow_stores=stores[1],
        tensor_core=tensor_core,
        seconds=seconds,
        problems=tuple(problems),
    )
