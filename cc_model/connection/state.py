"""`model.cc`: what a patched model learns and saves, and the switch `connection_disabled`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cc_model.config import CCConfig
from cc_model.connection.adapters import carry, take_carried
from cc_model.connection.decision_maker import DecisionMaker
from cc_model.connection.notices import notices_of


class _Switch(threading.local):
    """How many `connection_disabled` blocks the running thread is inside of.

    torch.compile reads the attribute of a thread-local object in the thread that runs the compiled code; it cannot read
    a context variable.

    Args:
        depth: where a thread begins that has not entered a block yet.
    """

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth

    def __reduce__(self) -> Any:
        """A copy of a model, and a pickled one, is inside of no block."""
        return type(self), ()


class CrossLingualConnection(nn.Module):
    """`model.cc`: the Decision Maker, the Transform Matrix (a buffer, None until set) and the switch.

    `transform_matrix` is `(d, d)` in row-vector convention (`E ≈ A M`), or `(L, d, d)` for one matrix per layer;
    `transform_bias` is `(d,)` or `(L, d)`. Assigning either checks it and copies it to the model's dtype and device;
    assigning a matrix drops the bias of the previous one.
    """

    transform_matrix: Tensor | None
    transform_bias: Tensor | None

    def __init__(self, config: CCConfig, num_layers: int, hidden_size: int, std: float, device: Any, dtype: Any):
        super().__init__()
        self.config = config
        self._switch = _Switch()
        self.decision_maker = DecisionMaker(num_layers, hidden_size, std, device, dtype)
        self.register_buffer("transform_matrix", None)
        self.register_buffer("transform_bias", None)
        self.num_layers, self.hidden_size = num_layers, hidden_size

    @property
    def enabled(self) -> bool:
        """Whether the running thread is outside of every `connection_disabled` block of this model."""
        return self._switch.depth == 0

    def _replicate_for_data_parallel(self) -> CrossLingualConnection:
        """A replica runs in a thread of its own: it begins inside of the blocks of the thread that makes it."""
        replica = super()._replicate_for_data_parallel()
        replica.__dict__["_switch"] = _Switch(self._switch.depth)
        return replica

    @property
    def simulates(self) -> bool:
        """Whether inference connects with the Transform Matrix."""
        return self.enabled and self.transform_matrix is not None

    @property
    def prefills(self) -> str | None:
        """How the last simulated prompt ran, for the report; None before the first."""
        return notices_of(self).prefills

    def __setattr__(self, name: str, value: Any) -> None:
        """Check an assigned matrix or bias; everything else is stored as usual."""
        if name in self._expected_shapes() and value is not None:
            value = self._checked(name, value)
        if name == "transform_matrix" and self._expected_shapes():
            self._buffers["transform_bias"] = None  # it belonged to the previous matrix
        super().__setattr__(name, value)

    def _expected_shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Of the matrix and the bias; empty while nothing is to be checked."""
        if "hidden_size" not in self.__dict__ or "_is_replica" in self.__dict__:  # it gets what was checked
            return {}
        layers, width = self.num_layers, self.hidden_size
        return {
            "transform_matrix": ((width, width), (layers, width, width)),
            "transform_bias": ((width,), (layers, width)),
        }

    def _checked(self, name: str, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor or None, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point dtype, got {value.dtype}")
        shared, per_layer = self._expected_shapes()[name]
        if tuple(value.shape) not in (shared, per_layer):
            raise ValueError(f"{name}: expected shape {shared} or {per_layer}, got {tuple(value.shape)}")
        weight = self.decision_maker.weight
        with torch.inference_mode(False):  # a copy of our own, which later in-place changes elsewhere do not reach
            own = value.detach().to(device=self.device_like(value), dtype=weight.dtype, copy=True)
        if own.device.type != "meta" and not bool(torch.isfinite(own).all()):
            raise ValueError(f"{name}: expected numbers that are finite in {weight.dtype}, got NaN or infinity")
        return own

    def device_like(self, tensor: Tensor) -> torch.device:
        """Where the connection computes: the Decision Maker's device, or that of `tensor` while it is offloaded."""
        device = self.decision_maker.weight.device
        return tensor.device if device.type == "meta" else device

    def _save_to_state_dict(self, *args: Any) -> None:
        """An adapter saves its copy of the Decision Maker only, which therefore carries the rest."""
        carry(self)
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Accept a matrix and a bias whether or not they were set before."""
        errors: list[str] = args[-1]
        take_carried(self, state_dict, prefix, errors)
        if state_dict.get(prefix + "transform_matrix") is not None and prefix + "transform_bias" not in state_dict:
            self._buffers["transform_bias"] = None
        for name in ("transform_matrix", "transform_bias"):
            value = state_dict.get(prefix + name)
            if value is None:
                continue
            try:
                checked = self._checked(name, value)
            except (TypeError, ValueError) as error:
                errors.append(str(error))
                state_dict.pop(prefix + name)
                continue
            current = getattr(self, name)
            if current is None or current.shape != value.shape:
                self._buffers[name] = torch.empty_like(checked)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def gumbel_noise(self, rows: int, device: torch.device) -> Tensor:
        """Gumbel noise `(rows, L)` in fp32, `−log(Exp(1))`, from the default generator of `device`."""
        return torch.empty(rows, self.num_layers, device=device, dtype=torch.float32).exponential_().log_().neg_()


@contextmanager
def connection_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the `with` block `model` is the plain model: no connection in training, evaluation or generation.

    The block holds for the thread that enters it. Other threads connect meanwhile, unless they are inside blocks of
    their own. Blocks may be nested and may overlap in time. A thread that is started inside the block is outside of it:
    the function that the thread runs has to enter the block. Replicas of `nn.DataParallel` follow the calling thread.

    Args:
        model: a patched model, also inside wrappers (PEFT, DDP).

    Yields:
        `model` itself.

    Raises:
        ValueError: `model` is not patched.

    Example:
        >>> from cc_model import connection_disabled, patch_model
        >>> from cc_model.testing import tiny_model
        >>> model = patch_model(tiny_model("llama"))
        >>> with connection_disabled(model):
        ...     model.cc.enabled
        False
        >>> model.cc.enabled
        True
    """
    switch = connection_of(model)._switch
    switch.depth += 1
    try:
        yield model
    finally:
        switch.depth -= 1


def connection_of(model: nn.Module) -> CrossLingualConnection:
    """The `cc` module of a patched model, also inside wrappers (PEFT, DDP); ValueError when there is none."""
    for module in model.modules():
        if isinstance(module, CrossLingualConnection):
            return module
    raise ValueError(f"model: expected a patched model, got {type(model).__name__}; call patch_model(model) first")


def is_connected(model: nn.Module) -> bool:
    """Whether `model`, or a model inside its wrappers, is patched."""
    return any(isinstance(module, CrossLingualConnection) for module in model.modules())


__all__ = ["CrossLingualConnection", "connection_disabled", "connection_of", "is_connected"]
