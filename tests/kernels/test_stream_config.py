import pytest
from kernel_harness import HAS_TRITON

from cc_kernels.aot.shapes import LARGEST, MODELS
from cc_kernels.aot.targets import TARGETS
from cc_kernels.launch import blocks
from cc_kernels.ops.stream_config import gate_up_config, transform_rows_config

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
SIZES = (2, 4, 8)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("model", [*MODELS, LARGEST], ids=lambda model: model.name)
@pytest.mark.parametrize("element_size", SIZES)
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 1000])
def test_tiles_fit_into_shared_memory(rows, element_size, model, target):
    for config, weights in (
        (transform_rows_config(rows, model.hidden, element_size, target.gpu), 1),
        (gate_up_config(rows, model.intermediate, element_size, target.gpu), 2),
    ):
        tile = (config.block_rows + weights * config.block_columns) * config.block_depth * element_size
        buffers = config.num_stages - (target.backend == "hip")  # wgmma, with 64 rows, keeps one more
        assert tile * buffers <= target.shared_per_block
        assert config.block_rows >= min(rows, 64)
        assert config.num_stages >= 2


@pytest.mark.parametrize("name", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_enough_programs_with_enough_in_flight(model, name):
    """In bf16 and up to 16 rows: programs for 8 of 11 processors, and 86 % of the bytes in flight that all need.

    A small matrix has fewer bytes than that: three quarters of it are then on their way at once.
    """
    gpu = TARGETS[name].gpu
    for config, width, weights in (
        (transform_rows_config(16, model.hidden, 2, gpu), model.hidden, 1),
        (gate_up_config(16, model.intermediate, 2, gpu), model.intermediate, 2),
    ):
        total = weights * width * model.hidden * 2
        programs = blocks(width, config.block_columns)
        assert programs >= gpu.processors * 8 // 11
        in_flight = weights * config.block_columns * config.block_depth * 2 * (config.num_stages - 1)
        assert programs * in_flight >= min(0.86 * gpu.processors * gpu.in_flight, 0.75 * total)
