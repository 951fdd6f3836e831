"""The behaviour mixed into the decoder: its body, its layers and their feed-forward blocks.

The body runs the call that the causal language model made. Each layer hands the running pass to its feed-forward
block. The block captures or injects around its own `__call__`, so that a `forward` which another library puts on the
instance does not switch the connection off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cc_kernels import gate_up_swiglu, swiglu
from cc_model.compat import cache_of, with_cache
from cc_model.data.columns import CONNECTION_ARGUMENTS
from cc_model.fast_paths.few_tokens import streams_weights
from cc_model.forward.passes import LayerSlot, active


class PatchedBody:
    """Runs the call that the causal language model made."""

    cc_arguments: tuple[str, ...]
    cc_connection: Any

    def forward(self, *args: Any, cc_call: Any = None, **kwargs: Any) -> Any:
        """The passes of `cc_call`; a direct call of the body is the stock forward, or an error where that misleads."""
        named = dict(zip(self.cc_arguments, args), **kwargs)
        if cc_call is None:
            self._cc_refuse_silence(named)
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        return cc_call.result(self, super().forward, with_cache(named, cache_of(named)))  # type: ignore[misc]

    def _cc_refuse_silence(self, named: dict[str, Any]) -> None:
        bypassed = [name for name in CONNECTION_ARGUMENTS if named.get(name) is not None]
        if bypassed:
            raise RuntimeError(
                f"{bypassed[0]} reached the decoder body: the patched forward of the model was bypassed by a "
                "`forward` set on the instance; call the model itself, model(...)"
            )
        cache = cache_of(named)
        connection = self.cc_connection
        if connection.simulates and not connection.training and (cache is None or int(cache.get_seq_length()) == 0):
            raise RuntimeError(
                "the decoder body was called directly while a Transform Matrix is set, so the connection would be "
                "left out; call model(...), or wrap the call in cc_model.connection_disabled(model)"
            )


class PatchedLayer:
    """Makes the pass in the layer's keyword arguments the running one while the layer runs."""

    def forward(self, *args: Any, cc_pass: Any = None, **kwargs: Any) -> Any:
        """The stock layer. Gradient checkpointing keeps `cc_pass` with the other arguments for the recompute."""
        if cc_pass is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        previous = getattr(active, "layer_pass", None)
        active.layer_pass = cc_pass
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            active.layer_pass = previous


class PatchedFeedForward:
    """SwiGLU through `cc_kernels`, and the running pass applied to the result."""

    cc_slot: LayerSlot
    training: bool
    cc_fused: tuple[str, str, str] | None  # names of the gate, up and down projections; None runs the stock forward

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The module's output, captured from or injected into when a pass is running."""
        block = super().__call__  # type: ignore[misc]
        layer_pass = getattr(active, "layer_pass", None)
        if layer_pass is None:
            return block(*args, **kwargs)
        slot = self.cc_slot
        # Not in compiled layers: a graph of its own for the last of them, in each mode, exceeds the recompile limit.
        if not torch.compiler.is_compiling() and layer_pass.narrow and slot is layer_pass.slots[-1]:
            return layer_pass.narrowed(slot, block, args[0] if args else kwargs["x"])
        output = block(*args, **kwargs)
        return layer_pass.feed_forward(slot, output, self)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """`down(silu(gate(x)) * up(x))`. Projections are called as modules: adapters and hooks stay in effect.

        Only for a few tokens at inference, where nothing is attached to them, one kernel reads their weights itself.
        """
        if self.cc_fused is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x = args[0] if args else kwargs["x"]
        modules = self._modules  # type: ignore[attr-defined]
        gate, up, down = [modules[name] if name in modules else getattr(self, name) for name in self.cc_fused]
        if not (self.training or torch.is_grad_enabled()) and streams_weights(gate, up, x):
            inner = gate_up_swiglu(x.reshape(-1, x.shape[-1]), gate.weight, up.weight)
            return down(inner.view(*x.shape[:-1], inner.shape[-1]))
        return down(swiglu(gate(x), up(x)))
