"""The learned part of the connection: the Decision Maker and the Transform Matrix."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cc_kernels import connect, transform_rows
from cc_model.config import CCConfig
from cc_model.connection.adapters import carry, take_carried


class DecisionMaker(nn.Module):
    """`z[b] = W (mean_l V[l,b] + e[b])`, `W: (L, d)`: which layer's activation a row receives.

    A module of its own and not an `nn.Linear`, because adapters wrap those by type. Arithmetic is fp32 whatever the
    dtype of W. Source: CC-Tuning section 3.2.
    """

    def __init__(self, num_layers: int, hidden_size: int, std: float, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        with torch.inference_mode(False):  # a parameter made in inference mode could never be trained
            self.weight = nn.Parameter(torch.empty(num_layers, hidden_size, device=device, dtype=dtype))
            nn.init.normal_(self.weight, std=std)
        self._folded: tuple[Any, Tensor] | None = None

    def forward(
        self,
        bank: Tensor,
        embeds: Tensor,
        noise: Tensor | None,
        config: CCConfig,
        matrix: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decide and select.

        Args:
            bank: `(L, B, d)`: English activations, or non-English ones when `matrix` is given.
            embeds: `(B, d)` input embeddings at the connection index.
            noise: `(B, L)` or None.
            config: temperature and hard.
            matrix: Transform Matrix `(d, d)` or `(L, d, d)`; the update is then mapped by it (inference only).
            bias: `(d,)` or `(L, d)`, added after the matrix.

        Returns:
            The update `(B, d)` and the weights `(B, L)`.
        """
        embeds = embeds.to(bank.dtype)
        if torch.is_grad_enabled():  # a step of the optimizer may follow, which sharding hides from version counters
            self._folded = None
        # Autocast would round the decision's matmuls to 16 bits.
        with torch.autocast(bank.device.type, enabled=False):
            if matrix is None:
                return connect(bank, embeds, self.weight, noise, config.temperature, config.hard)
            if bias is not None:  # mean_l (V_l M + c_l) = mean_l V_l M + mean_l c_l
                embeds = embeds + (bias if bias.ndim == 1 else bias.mean(0)).to(embeds.dtype)
            folded = self.folded(matrix)
            picked, weights = connect(bank, embeds, self.weight, noise, config.temperature, config.hard, folded)
            return _map(picked, bank, weights, matrix, bias, config.hard).to(bank.dtype), weights

    def folded(self, matrix: Tensor) -> Tensor:
        """`M Wᵀ` in fp32, `(d, L)` or `(L, d, L)`: rebuilt when M or W was replaced or changed in place.

        A change past PyTorch's version counter (`weight.data.mul_(2)`) is seen after the next `train()` or `eval()`.
        """
        if matrix.is_inference() or self.weight.is_inference():  # no version counters, so nothing to compare
            return _fold(matrix, self.weight)
        key = (matrix._version, matrix.data_ptr(), self.weight._version, self.weight.data_ptr())
        if self._folded is not None:
            (kept_for, kept_key), kept = self._folded
            if kept_for() is matrix and kept_key == key:
                return kept
        folded = _fold(matrix, self.weight)
        self._folded = (weakref.ref(matrix), key), folded
        return folded

    def train(self, mode: bool = True) -> DecisionMaker:
        """The stock method; what was folded is built anew."""
        self._folded = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave the folded matrix out; they build their own."""
        return {**self.__dict__, "_folded": None}

    def extra_repr(self) -> str:
        """The size, as PyTorch prints it."""
        return f"num_layers={self.weight.shape[0]}, hidden_size={self.weight.shape[1]}"


@torch.no_grad()
def _fold(matrix: Tensor, weight: Tensor) -> Tensor:
    return matrix.float() @ weight.float().T


def _map(picked: Tensor, bank: Tensor, weights: Tensor, matrix: Tensor, bias: Tensor | None, hard: bool) -> Tensor:
    """The selected activation after the Transform Matrix: `Σ_l w_l (V_l M_l + c_l)`. Inference only."""
    if matrix.ndim == 2:  # Σ_l w_l V_l M = (Σ_l w_l V_l) M: one row per prompt
        mapped = transform_rows(picked.to(matrix.dtype), matrix)
    elif hard:
        mapped = transform_rows(picked.to(matrix.dtype), matrix, layers=weights.argmax(dim=-1))
    else:
        every_layer = torch.bmm(bank.to(matrix.dtype), matrix)  # (L, B, d)
        mapped = torch.einsum("bl,lbd->bd", weights.to(matrix.dtype), every_layer)
    if bias is None:
        return mapped
    return mapped + (bias if bias.ndim == 1 else weights.to(bias.dtype) @ bias)


@torch.no_grad()
def mapped_bank(bank: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """`V_l M_l + c_l` for the whole bank `(L, B, d)`, without a gradient: what inference puts in the English place."""
    with torch.autocast(bank.device.type, enabled=False):
        mapped = bank.to(matrix.dtype) @ matrix.to(bank.device)
        if bias is not None:
            mapped = mapped + (bias if bias.ndim == 1 else bias[:, None]).to(bank.device)
    return mapped.to(bank.dtype)


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
        self.enabled = True
        self.said: set[str] = set()  # notices that were given once
        self.prefills: str | None = None  # how the last simulated prompt was run, for the report
        self.decision_maker = DecisionMaker(num_layers, hidden_size, std, device, dtype)
        self.register_buffer("transform_matrix", None)
        self.register_buffer("transform_bias", None)
        self.num_layers, self.hidden_size = num_layers, hidden_size

    @property
    def simulates(self) -> bool:
        """Whether inference connects with the Transform Matrix."""
        return self.enabled and self.transform_matrix is not None

    def __setattr__(self, name: str, value: Any) -> None:
        """Check an assigned matrix or bias; everything else is stored as usual."""
        if name in self._expected_shapes() and value is not None:
            value = self._checked(name, value)
        if name == "transform_matrix" and self._expected_shapes():
            self._buffers["transform_bias"] = None  # it belonged to the previous matrix
        super().__setattr__(name, value)

    def _expected_shapes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        if "hidden_size" not in self.__dict__:  # under construction
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

    def say_once(self, message: str) -> bool:
        """True the first time `message` is to be said."""
        first = message not in self.said
        self.said.add(message)
        return first


@contextmanager
def connection_disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the `with` block `model` is the plain model: no connection in training, evaluation or generation.

    This is a switch of the model, so that it holds for all threads of the process. At the end of the block the previous
    state comes back, also after an exception; blocks of several threads must therefore not overlap in time.

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
    connection = connection_of(model)
    previous, connection.enabled = connection.enabled, False
    try:
        yield model
    finally:
        connection.enabled = previous


def connection_of(model: nn.Module) -> CrossLingualConnection:
    """The `cc` module of a patched model, also inside wrappers (PEFT, DDP); ValueError when there is none."""
    for module in model.modules():
        if isinstance(module, CrossLingualConnection):
            return module
    raise ValueError(f"model: expected a patched model, got {type(model).__name__}; call patch_model(model) first")


__all__ = ["CrossLingualConnection", "DecisionMaker", "connection_disabled", "connection_of", "mapped_bank"]
