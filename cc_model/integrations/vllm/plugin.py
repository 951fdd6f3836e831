"""The plugin's entry point: vLLM calls `register` in each of its processes."""

from __future__ import annotations

from typing import Any

from cc_kernels import __version__
from cc_model.integrations.vllm.families import FAMILIES, PREFIX
from cc_model.integrations.vllm.front import SCHEDULER, check_requests_in_front, refuse_settings


def register() -> None:
    """Make the `CC*` architectures known to vLLM. Nothing else changes until a model of one of them is served."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for stock in FAMILIES:
        name = PREFIX + stock
        if name not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, f"cc_model.integrations.vllm.models:{name}")
        MODELS_CONFIG_MAP[name] = _config_class(MODELS_CONFIG_MAP.get(stock))


def _config_class(stock: Any) -> Any:
    """What vLLM calls with the settings of an engine that serves a connected model; `stock` is the plain model's."""

    class ConnectedConfig(stock or object):  # type: ignore[misc]
        """Refuses what cannot be exact, and chooses the scheduler."""

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            if stock is not None:
                stock.verify_and_update_model_config(model_config)

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            if stock is not None:
                stock.verify_and_update_config(vllm_config)
            refuse_settings(vllm_config)
            vllm_config.scheduler_config.scheduler_cls = SCHEDULER
            if isinstance(vllm_config.additional_config, dict):  # part of the key of compiled graphs
                vllm_config.additional_config["cc_model"] = __version__
            check_requests_in_front()

    return ConnectedConfig
