"""What the serving tests share: a small random model whose connected answers all differ, and engines of vLLM on a CPU.

Engines run in the test's process. One is made for each set of options and kept for the session.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
vllm = pytest.importorskip("vllm")

import torch  # noqa: E402

from cc_model import connection_disabled, patch_model  # noqa: E402
from cc_model.testing import random_matrix, tiny_model  # noqa: E402

VOCABULARY = 512
OPTIONS = {
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "dtype": "float32",
    "block_size": 32,
    "max_num_seqs": 16,
    "max_model_len": 512,
    "max_num_batched_tokens": 512,
    "kv_cache_memory_bytes": 2**26,
    "disable_log_stats": True,
}
WIDE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
}


def make_model(model_type="llama", scale=30.0, **overrides):
    """A random patched model of 4 layers and width 256; the matrix is scaled so that each connected answer differs."""
    model = patch_model(tiny_model(model_type, **{**WIDE, **overrides}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.cc.decision_maker.weight.normal_(generator=generator)
    model.cc.transform_matrix = random_matrix(model, scale=scale)
    return model


def prompts_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def generate(model, prompt, tokens, plain=False, index=None, **options):
    """The new tokens of this library's `generate`, greedy."""
    ids = torch.tensor([prompt])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": tokens, "do_sample": False, **options}
    if plain:
        with connection_disabled(model):
            return model.generate(ids, **options)[0, len(prompt) :].tolist()
    if index is not None:
        options["connection_index"] = torch.tensor([index])
    return model.generate(ids, **options)[0, len(prompt) :].tolist()


def greedy(tokens=8, **options):
    return vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, **options)


def ask(engine, prompts, params):
    """The requests' outputs of vLLM, in order."""
    return engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)


def serve(engine, prompts, params):
    """The new tokens of vLLM, in order."""
    return [list(output.outputs[0].token_ids) for output in ask(engine, prompts, params)]


def scheduler_of(engine):
    return engine.llm_engine.engine_core.engine_core.scheduler


KEPT = []  # an engine that ends takes the process groups of all others with it


def start(folder: Path, **options):
    KEPT.append(vllm.LLM(str(folder), **{**OPTIONS, **options}))
    return KEPT[-1]
