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
        (transform_rows_config(rows, model.hidden, element_size, target.warp_size), 1),
        (gate_up_config(rows, model.intermediate, element_size, target.warp_size), 2),
    ):
        tile = (config.block_rows + weights * config.block_columns) * config.block_depth * element_size
        buffers = config.num_stages - (target.backend == "hip")  # wgmma, with 64 rows, keeps one more
        assert tile * buffers <= target.shared_per_block
        assert config.block_rows >= min(rows, 64)
        assert config.num_stages >= 2


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_enough_programs_with_enough_in_flight(model):
    """In bf16 and up to 16 rows: at least 96 programs, and at least 31 KB in flight per processor of an H200."""
    for config, width, weights in (
        (transform_rows_config(16, model.hidden, 2, 32), model.hidden, 1),
        (gate_up_config(16, model.intermediate, 2, 32), model.intermediate, 2),
    ):
        programs = blocks(width, config.block_columns)
        assert programs >= 96
        in_flight = weights * config.block_columns * config.block_depth * 2 * (config.num_stages - 1)
        assert programs * in_flight >= 132 * 31 * 1024
