"""What only a GPU shows: launches in captured graphs, on several streams and several devices."""

import pytest
import torch
from kernel_harness import randn

from cc_kernels import add_rows, connect, reference, swiglu
from cc_kernels.launch import launching, warmup

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_warmup_prepares_a_capture():
    gate, up = randn(64, 256), randn(64, 256, seed=1)
    launching.forget()
    warmup(lambda: swiglu(gate, up))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = swiglu(gate, up)
    for seed in (2, 3):
        gate.copy_(randn(64, 256, seed=seed))
        graph.replay()
        torch.testing.assert_close(out, reference.swiglu(gate, up))


def test_a_captured_connection_and_eager_calls_between_replays():
    """Eager calls of the same kind use the same plan, and none of the graph's memory."""
    bank, embeds, weight = randn(8, 4, 256), randn(4, 256, seed=1), randn(8, 256, seed=2)
    warmup(lambda: connect(bank, embeds, weight))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = connect(bank, embeds, weight)
    for seed in (3, 4):
        bank.copy_(randn(8, 4, 256, seed=seed))
        graph.replay()
        expected = reference.connect(bank, embeds, weight)
        eager = connect(randn(8, 4, 256, seed=9), embeds, weight)
        for ours, theirs in zip(captured, expected):
            torch.testing.assert_close(ours, theirs)
        assert eager[0].data_ptr() != captured[0].data_ptr()


def test_launches_go_to_the_current_stream():
    gate = randn(4096, 4096)
    swiglu(gate, gate)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        gate.fill_(1.0)  # the kernel must come after this, on the same stream
        out = swiglu(gate, gate)
    stream.synchronize()
    torch.testing.assert_close(out, reference.swiglu(gate, gate))


def test_devices_have_plans_of_their_own():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for _ in range(3):
        for device in ("cuda:0", "cuda:1"):
            x = torch.ones(8, 64, device=device)
            assert swiglu(x, x).device == x.device
            torch.testing.assert_close(swiglu(x, x), reference.swiglu(x, x))
            add_rows(x, torch.tensor([2], device=device), x[:1].clone(), inplace=True)
            assert x[2].sum().item() == 128
    assert torch.cuda.current_device() == 0
