"""Greedy tokens of each family that the plugin serves equal those of this library's `generate`."""

from __future__ import annotations

import functools

import pytest
from served import VOCABULARY, generate, greedy, make_model, serve, start, vllm
from test_processes import PROMPTS, run
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as ARCHITECTURES

from cc_model.integrations.vllm.families import FAMILIES

TIED = ("bloom", "cohere", "cohere2", "gemma", "gemma2", "gemma3_text")  # vLLM's classes know no head of their own
OPTIONS = {
    **{family: {"sliding_window": 64} for family in ("cohere2", "gemma2", "gemma3_text")},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY},
    "llama4_text": {"attention_chunk_size": 64, "num_experts_per_tok": 1},
}
DENSE = [
    *(*TIED, "apertus", "arcee", "cwm", "ernie4_5", "exaone4", "glm", "glm4", "gpt2", "gptj", "granite", "granite_swa"),
    *("helium", "hunyuan_v1_dense", "llama", "ministral", "ministral3", "mistral", "nemotron", "olmo", "olmo2"),
    *(
        "gemma4_text",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "vaultgemma",
    ),
]
MIXTURES = [
    *("dots1", "ernie4_5_moe", "glm4_moe", "gpt_oss", "granitemoe", "llama4_text", "mellum", "mixtral", "olmoe"),
    *("qwen2_moe", "qwen3_moe"),
]
NOT_IN_FP32 = ("gpt_oss", "granite_swa") if vllm.__version__.startswith("0.30.") else ()  # it makes bf16 of their sinks


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder and tokens for `PROMPTS` of a random model of a family.

    A family is made once: vLLM changes transformers' classes in the process that serves through their layers.
    """

    @functools.cache
    def save(family):
        folder = tmp_path_factory.mktemp(family)
        # Embeddings that are tied and scaled repeat the prompt unless the update is large.
        large = 1000.0 if family in ("bloom", "gemma") else 30.0
        model = make_model(family, large, tie_word_embeddings=family in TIED, **OPTIONS.get(family, {}))
        model.save_pretrained(folder, serve=True)
        expected = [generate(model, prompt, 8) for prompt in PROMPTS]
        plain = [generate(model, prompt, 8, plain=True) for prompt in PROMPTS]
        assert sum(a != b for a, b in zip(expected, plain)) >= 3, "the connection must change answers, to be seen"
        return folder, expected

    return save


def test_each_family_is_tested():
    assert {ARCHITECTURES[family] for family in [*DENSE, *MIXTURES]} == set(FAMILIES)


@pytest.mark.long
@pytest.mark.parametrize("family", [family for family in DENSE if family not in NOT_IN_FP32])
def test_dense_families(family, saved):
    folder, expected = saved(family)
    assert serve(start(folder, kv_cache_memory_bytes=2**24), PROMPTS, greedy(8)) == expected


@pytest.mark.long
def test_mixtures_of_experts(saved):
    """In a process of their own, see `run_engine.py`."""
    mixtures = [family for family in MIXTURES if family not in NOT_IN_FP32]
    folders, expected = zip(*map(saved, mixtures))
    tokens, output = run(*folders)
    assert dict(zip(mixtures, tokens)) == dict(zip(mixtures, expected)), output[-3000:]


@pytest.mark.long
@pytest.mark.parametrize("family", ["olmo2", "qwen3_moe"])
def test_families_on_two_devices(family, saved):
    folder, expected = saved(family)
    options = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    tokens, output = run(folder, environment={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}, **options)
    assert tokens == [expected], output[-3000:]
