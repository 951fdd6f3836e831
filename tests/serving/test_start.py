"""What is refused at the start, and how a folder is told from a plain model's."""

from __future__ import annotations

import json
from operator import attrgetter
from types import SimpleNamespace

import pytest
from served import OPTIONS, generate, greedy, make_model, prompts_of, serve, start, vllm
from transformers import AutoModelForCausalLM

from cc_model import from_pretrained, patch_model
from cc_model.integrations.vllm.names import NAMES, check_names
from cc_model.integrations.vllm.scheduler import make_scheduler
from cc_model.testing import tiny_model


def settings(folder, **options):
    """The settings of an engine, without the engine."""
    options = {name: value for name, value in {**OPTIONS, **options}.items() if name != "disable_log_stats"}
    return vllm.EngineArgs(model=str(folder), **options).create_engine_config()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size above 1"),
        ({"enable_prompt_embeds": True}, "prompt embeddings"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative decoding"),
        ({"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}}, "a KV connector"),
        ({"enable_lora": True}, "LoRA adapters"),
        ({"load_format": "dummy"}, "load_format=dummy"),
        ({"load_format": "sharded_state"}, "load_format=sharded_state"),
        ({"scheduler_cls": "vllm.v1.core.sched.scheduler.Scheduler"}, "scheduler_cls="),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_cannot_be_exact(folder, options, name):
    with pytest.raises(ValueError, match=f"cannot be served with .*{name}"):
        settings(folder, **options)


@pytest.mark.parametrize(
    ("place", "value", "name"),
    [
        ("compilation_config.pass_config.enable_sp", True, "sequence parallelism"),
        ("parallel_config.prefill_context_parallel_size", 2, "prefill_context_parallel_size above 1"),
        ("parallel_config.decode_context_parallel_size", 2, "decode_context_parallel_size above 1"),
        ("parallel_config.enable_dbo", True, "enable_dbo"),
        ("cache_config.kv_sharing_fast_prefill", True, "kv_sharing_fast_prefill"),
        ("model_config.runner_type", "pooling", "a pooling runner"),
        ("model_config.enable_sleep_mode", True, "enable_sleep_mode"),
    ],
)
def test_settings_that_a_cpu_turns_off(folder, place, value, name):
    """vLLM's CPU platform resets them, so they are set after it; the scheduler is refused all the same."""
    made = settings(folder)
    owner, _, field = place.rpartition(".")
    setattr(attrgetter(owner)(made), field, value)
    with pytest.raises(ValueError, match=f"cannot be served with .*{name}"):
        make_scheduler(vllm_config=made)


def test_experts_that_see_some_rows_only(folder, monkeypatch):
    made = settings(folder)
    monkeypatch.setattr(type(made.parallel_config), "use_sequence_parallel_moe", True)
    with pytest.raises(ValueError, match="cannot be served with sequence parallelism of experts"):
        make_scheduler(vllm_config=made)


def test_cohere_is_not_split(tmp_path):
    """Each device has a part of what its layers add, and the sum comes after the addition."""
    make_model("cohere", tie_word_embeddings=True).save_pretrained(tmp_path, serve=True)
    with pytest.raises(ValueError, match="tensor_parallel_size above 1 for CohereForCausalLM"):
        settings(tmp_path, tensor_parallel_size=2)


def test_another_family_than_the_folder_s(tmp_path):
    """vLLM's Llama reads the weights of Qwen2 without its biases, and answers."""
    make_model("qwen2").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected CCQwen2ForCausalLM, because .* got CCLlamaForCausalLM"):
        settings(tmp_path, hf_overrides={"architectures": ["CCLlamaForCausalLM"]})


def test_the_scheduler_and_the_key_of_compiled_graphs(folder):
    made = settings(folder)
    assert made.scheduler_config.scheduler_cls == "cc_model.integrations.vllm.scheduler.make_scheduler"
    assert "cc_model" in made.additional_config


def test_a_plain_folder_is_left_alone(model, tmp_path):
    model.save_pretrained(tmp_path, plain=True)
    made = settings(tmp_path)
    assert made.scheduler_config.scheduler_cls is None
    assert made.additional_config == {}


def test_a_served_folder_loads_in_transformers(model, folder):
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["CCLlamaForCausalLM"]
    assert type(AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    assert from_pretrained(folder).cc.transform_matrix.equal(model.cc.transform_matrix)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_folder_with_code_is_served_as_ever(model, tmp_path, trusted):
    """vLLM knows the architecture, so it does not run the file, whether it may or not."""
    model.save_pretrained(tmp_path, serve=True, remote_code=True)
    (tmp_path / "modeling_cc.py").write_text("raise RuntimeError")
    engine = start(tmp_path, trust_remote_code=trusted)
    (prompt,) = prompts_of([40])
    assert serve(engine, [prompt], greedy(4)) == [generate(model, prompt, 4)]


SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


@pytest.mark.parametrize(
    ("place", "names", "missing"),
    [
        (SCHEDULER, ("schedule", "_renamed"), "_renamed"),
        (SCHEDULER, ("add_request(request)", "add_request(renamed)"), r"add_request\(renamed\)"),
        (SCHEDULER, ("renamed(request)",), r"renamed\(request\)"),
        ("vllm.v1.core.sched.output:SchedulerOutput", ("num_scheduled_tokens", "num_renamed"), "num_renamed"),
        ("vllm.v1.worker.gpu.model_states:", ("get_renamed_cls",), "get_renamed_cls"),
        ("vllm.v1.engine:Renamed", (), ".*'Renamed'"),
        ("vllm.renamed:", (), ".*'vllm.renamed'"),
    ],
)
def test_another_version_of_vllm_is_named(monkeypatch, place, names, missing):
    monkeypatch.setitem(NAMES, "scheduler", {place: names})
    with pytest.raises(RuntimeError, match=rf"vllm {vllm.__version__}: .* missing: {missing}; docs/serving.md"):
        check_names("scheduler")


@pytest.mark.parametrize("part", NAMES)
def test_this_version_has_all_names(part):
    if part == "scores of given tokens" and not hasattr(vllm.SamplingParams, "prompt_logprob_token_ids"):
        pytest.skip("requests of this version cannot ask for them")
    check_names(part)


def test_weights_without_a_matrix(tmp_path):
    """Such a folder would answer as the plain model."""
    from cc_model.integrations.vllm.models import ConnectedModel

    class Stock:
        def load_weights(self, weights):
            return {name for name, _ in weights}

    loader = type("Loader", (ConnectedModel, Stock), {"__init__": lambda self: None})()
    loader.cc_loaded = False
    weights = patch_model(tiny_model()).state_dict()
    with pytest.raises(ValueError, match=r"expected the weights cc\.transform_matrix"):
        loader.load_weights(weights.items())


def test_weights_are_loaded_again(model, folder, tmp_path):
    """Training that serves between its steps hands an engine new weights."""
    other = make_model()
    other.cc.transform_matrix = -model.cc.transform_matrix
    other.save_pretrained(tmp_path)
    engine, (prompt,) = start(folder), prompts_of([40])
    wanted = [generate(each, prompt, 4) for each in (model, other)]
    assert wanted[0] != wanted[1]
    for path, expected in zip((folder, tmp_path), wanted):
        engine.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        assert serve(engine, [prompt], greedy(4)) == [expected]


def test_a_folder_without_options(tmp_path):
    from cc_model.integrations.vllm.models import read_options

    with pytest.raises(ValueError, match=r"expected cc_config\.json"):
        read_options(SimpleNamespace(model=str(tmp_path), revision=None))
