"""The behaviour mixed into the decoder: its body, its layers, what they add to their stream, their feed-forward blocks.

The body runs the call that the causal language model made. Each layer makes the running pass known to its addend, the
module whose output it adds to its stream: the feed-forward block, or a norm after it. The addend captures or injects
around its own `__call__`, so that a `forward` which another library puts on the instance does not switch the connection
off.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cc_kernels import backend, gate_up_swiglu, geglu, swiglu
from cc_model.compat import OLD_CACHE, RENAMED, cache_of, with_cache
from cc_model.data.columns import CONNECTION_ARGUMENTS
from cc_model.fast_paths.few_tokens import OP, streamed
from cc_model.fast_paths.fused import GELU_TANH, SILU, FusedBlock
from cc_model.fast_paths.product import computes_again, without_product
from cc_model.fast_paths.whole_block import whole_block
from cc_model.forward.calls import PlainCall
from cc_model.forward.passes import LayerSlot, active
from cc_model.patching.projection import plain_weights, project, runs_whole


class _Beside(threading.local):
    """The call and the pass on their way past a forward that drops unknown keyword arguments (`ModelSpec.hands_on`).

    Each is taken once: by the body, and by every layer while the body runs.
    """

    def __init__(self) -> None:
        self.call: Any = None
        self.layer_pass: Any = None


beside = _Beside()


class PatchedBody:
    """Runs the call that the causal language model made."""

    cc_arguments: tuple[str, ...]
    cc_connection: Any
    cc_hands_on: bool

    def forward(self, *args: Any, cc_call: Any = None, **kwargs: Any) -> Any:
        """The passes of `cc_call`; a direct call of the body is the stock forward, or an error where that misleads."""
        named = dict(zip(self.cc_arguments, args), **kwargs)
        if cc_call is None and not self.cc_hands_on:
            cc_call, beside.call = beside.call, None
        if cc_call is None:
            self._cc_refuse_silence(named)
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        if RENAMED and OLD_CACHE in named:
            named = with_cache(named, cache_of(named))
        return_dict = named.pop("return_dict", None)
        if type(cc_call) is not PlainCall:
            named.pop("logits_to_keep", None)  # passes count their tokens from the first
        output = cc_call.result(self, self.cc_stock, named)
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)  # type: ignore[attr-defined]
        return output.to_tuple() if as_tuple else output

    def cc_stock(self, *args: Any, cc_pass: Any = None, **kwargs: Any) -> Any:
        """The stock forward, with `cc_pass` for every layer; its output is never a tuple."""
        if cc_pass is None:
            return super().forward(*args, **kwargs, return_dict=True)  # type: ignore[misc]
        if self.cc_hands_on:
            return super().forward(*args, **kwargs, return_dict=True, cc_pass=cc_pass)  # type: ignore[misc]
        previous, beside.layer_pass = beside.layer_pass, cc_pass
        try:
            return super().forward(*args, **kwargs, return_dict=True)  # type: ignore[misc]
        finally:
            beside.layer_pass = previous

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


class PatchedSilentLayer(PatchedLayer):
    """A layer whose body hands it no keyword arguments: the pass comes beside the call, and then travels as usual."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The layer with the body's pass among its keyword arguments, where gradient checkpointing keeps it."""
        if beside.layer_pass is not None:
            kwargs["cc_pass"] = beside.layer_pass
        return super().__call__(*args, **kwargs)  # type: ignore[misc]


class PatchedAddend:
    """What a layer adds to its stream: the running pass is applied to its output, the first of a tuple."""

    cc_slot: LayerSlot

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, captured from or injected into when a pass is running."""
        block = super().__call__  # type: ignore[misc]
        layer_pass = getattr(active, "layer_pass", None)
        if layer_pass is None:
            return block(*args, **kwargs)
        slot = self.cc_slot
        # Not in compiled layers: a graph of its own for the last of them, in each mode, exceeds the recompile limit.
        if not torch.compiler.is_compiling() and layer_pass.narrow and slot is layer_pass.slots[-1]:
            return layer_pass.narrowed(slot, block, args[0] if args else next(iter(kwargs.values())))
        output = block(*args, **kwargs)
        if isinstance(output, tuple):  # experts return their router's scores, too
            return (layer_pass.feed_forward(slot, output[0], self), *output[1:])
        return layer_pass.feed_forward(slot, output, self)

    def _cc_owns_output(self) -> bool:
        """Whether nobody else can hold the output, so that it may be written to."""
        return False


class PatchedFeedForward:
    """A gated feed-forward block through `cc_kernels`."""

    training: bool
    cc_fused: FusedBlock | None  # None runs the stock forward
    cc_computes_again = False  # see `cc_model.save_memory`

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """`down(act(gate(x)) * up(x))`. Projections to which anything is attached are called as modules.

        So adapters and hooks stay in effect. Where there are none, training runs the block as one function, and for a
        few tokens at inference one kernel reads gate's and up's weights.
        """
        if self.cc_fused is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        x = args[0] if args else next(iter(kwargs.values()))
        modules = self._modules  # type: ignore[attr-defined]
        fused = self.cc_fused
        # The dictionary is the quick way; a projection that another library keeps as a plain attribute is not in it.
        gate = modules[fused.gate] if fused.gate in modules else getattr(self, fused.gate)
        down = modules[fused.down] if fused.down in modules else getattr(self, fused.down)
        up = None
        if fused.up:
            up = modules[fused.up] if fused.up in modules else getattr(self, fused.up)
        weights = plain_weights(gate, up, down) if up is not None else None
        inference = fused.activation == SILU and not (self.training or torch.is_grad_enabled())
        if inference and backend.triton_serves(OP, x):
            pair = streamed(gate, up, x, weights)
            if pair is not None:
                inner = gate_up_swiglu(x.reshape(-1, x.shape[-1]), *pair).view(*x.shape[:-1], -1)
                return project(down, inner) if weights is None else F.linear(inner, weights[2])
        if weights is None:
            gated, raised = (project(gate, x), project(up, x)) if up is not None else project(gate, x).chunk(2, dim=-1)
        elif torch.is_grad_enabled() and runs_whole(x, fused.activation):
            return whole_block(x, *weights, fused.activation)
        else:
            gated, raised = F.linear(x, weights[0]), F.linear(x, weights[1])
        inner = _product(gated, raised, fused.activation)
        if self.cc_computes_again and computes_again(inner, down):
            with without_product(inner, partial(_product, gated.detach(), raised.detach(), fused.activation)):
                return down(inner)
        return project(down, inner) if weights is None else F.linear(inner, weights[2])


def _product(gated: Tensor, raised: Tensor, activation: str) -> Tensor:
    if activation == SILU:
        return swiglu(gated, raised)
    return geglu(gated, raised, approximate="tanh" if activation == GELU_TANH else "none")


class PatchedFeedForwardAddend(PatchedAddend, PatchedFeedForward):
    """A feed-forward block that the layer adds itself, which most architectures do."""
