"""Options of vLLM's engine and of its requests, under which an evaluation gives what transformers gives.

They are made from a model's folder and configs. Nothing here imports vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import GenerationConfig

from cc_model.integrations.vllm.families import FAMILIES, PREFIX, stock_architecture
from cc_model.saving import CONFIG_FILE
from cc_model.saving import PREFIX as WEIGHTS
from cc_model.scoring import ChoiceScore

OWN = ("model", "tokenizer", "dtype", "max_model_len", "max_num_seqs", "hf_overrides", "skip_tokenizer_init")
HARMLESS = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version", "_from_model_config", "use_cache"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "cache_implementation", "output_attentions", "output_hidden_states"),
}
"""Fields of a generation config that do not change what greedy decoding gives, or that lm-eval sets itself."""


def engine_options(
    folder: str, config: Any, dtype: str, length: int, rows: int | None, further: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of `vllm.LLM` for a folder. A patched model's is told to connect.

    One token more than `length` is asked for: a scored choice's last token counts as an answer, and is never read.

    Raises:
        ValueError: see `ServedLM`.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(architectures=["LlamaForCausalLM"], dtype="float32")
        >>> engine_options("runs/mine", config, "auto", 512, None, {})
        {'model': 'runs/mine', 'dtype': 'float32', 'max_model_len': 513}
    """
    taken = [name for name in further if name in OWN]
    if taken:
        raise ValueError(f"engine: expected other options than {', '.join(OWN)}, got {taken[0]}")
    if dtype == "auto":
        if config.dtype is None:
            raise ValueError(f"dtype: expected one, because the config.json in {folder} names none, got 'auto'")
        dtype = str(config.dtype).removeprefix("torch.")
    options = {"model": folder, "dtype": dtype, "max_model_len": length + 1}
    if rows is not None:
        options["max_num_seqs"] = rows
    if (Path(folder) / CONFIG_FILE).is_file():
        name = (config.architectures or [""])[0]
        stock = stock_architecture(name) or name
        if stock not in FAMILIES:
            raise ValueError(f"model: expected one of {', '.join(FAMILIES)} to be served, got {stock}")
        if not has_weight(folder, f"{WEIGHTS}transform_matrix"):
            raise ValueError(
                f"connection: expected a patched model with a Transform Matrix (fit_transform_matrix), got {folder} "
                "without one, which vLLM does not serve; use the engine hf"
            )
        options["hf_overrides"] = {"architectures": [PREFIX + stock]}
    return {**options, **further}


def has_weight(folder: str, name: str) -> bool:
    """Whether one of a folder's safetensors files has a weight of this name.

    Example:
        >>> has_weight("no-such-folder", "cc.transform_matrix")
        False
    """
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            if name in weights.keys():  # noqa: SIM118  (no dict)
                return True
    return False


def generation_config_of(folder: str, config: Any) -> Any:
    """The generation config that transformers' `generate` would take, if greedy decoding in vLLM can follow it.

    Raises:
        ValueError: it has a field that changes greedy answers, other than `repetition_penalty`.
    """
    try:
        made = GenerationConfig.from_pretrained(folder)
    except OSError:
        made = GenerationConfig.from_model_config(config)
    other = sorted(set(made.to_diff_dict()) - HARMLESS - {"repetition_penalty"})
    if other:
        raise ValueError(
            f"generation_config.json: expected no {other[0]} with vLLM, got {getattr(made, other[0])!r}; take it out, "
            "or use the engine hf"
        )
    return made


def scoring_params(choice: Sequence[int], wish: dict[str, Any] | None) -> dict[str, Any]:
    """Sampling parameters under which a request gives the log-probabilities of a choice's tokens.

    Example:
        >>> scoring_params([7], {"cc_index": 3})["allowed_token_ids"], scoring_params([7, 8], None)["prompt_logprobs"]
        ([7], 0)
    """
    own: dict[str, Any] = {"temperature": 0.0, "max_tokens": 1, "detokenize": False, "logprobs": 0, "extra_args": wish}
    own["allowed_token_ids"] = [choice[-1]]  # the reported log-probability is that before this rule
    return {**own, "prompt_logprobs": 0} if len(choice) > 1 else own


def score_of(output: Any, prompt_length: int, choice: Sequence[int]) -> ChoiceScore:
    """The score of a choice from vLLM's output of a request made by `scoring_params`."""
    rows = [*(output.prompt_logprobs[prompt_length:] if len(choice) > 1 else ()), *output.outputs[0].logprobs]
    found = [row[token] for row, token in zip(rows, choice, strict=True)]
    return ChoiceScore(sum(each.logprob for each in found), all(each.rank == 1 for each in found))


def answering_params(
    config: Any, room: int, stop: Sequence[str], generation: Mapping[str, Any], wish: dict[str, Any] | None
) -> dict[str, Any]:
    """Sampling parameters of a greedy answer of at most `room` tokens, as transformers' generation config has it.

    Raises:
        ValueError: the task samples, or sets an option other than `do_sample` and `temperature`.

    Example:
        >>> from transformers import GenerationConfig
        >>> config = GenerationConfig(eos_token_id=[1, 2])
        >>> params = answering_params(config, 5, ["\\n"], {"do_sample": False, "temperature": 0.0}, None)
        >>> params["stop_token_ids"], params["max_tokens"], params["repetition_penalty"]
        ([1, 2], 5, 1.0)
    """
    if generation.get("do_sample") or set(generation) - {"do_sample", "temperature"}:
        raise ValueError(f"generation_kwargs: expected greedy answers with vLLM, got {dict(generation)}")
    ends = config.eos_token_id
    return {
        "temperature": 0.0,
        "repetition_penalty": config.repetition_penalty or 1.0,
        "max_tokens": room,
        "stop": list(stop),
        "stop_token_ids": [] if ends is None else list(ends) if isinstance(ends, list) else [ends],
        "skip_special_tokens": False,  # for `stop`; the text is lm-eval's
        "include_stop_str_in_output": True,
        "extra_args": wish,
    }


__all__ = ["answering_params", "engine_options", "generation_config_of", "score_of", "scoring_params"]
