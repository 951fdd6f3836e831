"""Greedy tokens of vLLM equal those of this library's `generate`, however the engine cuts and batches the prompts."""

from __future__ import annotations

import pytest
from served import ask, generate, greedy, prompts_of, scheduler_of, serve, start

TURNS = 5


def test_every_prompt_length(model, engine):
    prompts = prompts_of(range(1, 201))
    expected = [generate(model, prompt, 4) for prompt in prompts]
    assert serve(engine, prompts, greedy(4)) == expected
    plain = [generate(model, prompt, 4, plain=True) for prompt in prompts[::10]]
    assert all(a != b for a, b in zip(expected[::10], plain)), "the connection must change each answer, to be seen"


def test_plain_connected_and_indexed_requests_in_one_batch(model, engine):
    prompts = prompts_of([5, 40, 40, 64, 65, 100, 7, 33], seed=1)
    wishes = [
        None,
        {"cc": False},
        {"cc_index": 0},
        {"cc_index": 31},
        {"cc_index": 32},
        {"cc": False},
        None,
        {"cc": True},
    ]
    expected = [
        generate(model, prompt, 12, plain=wish == {"cc": False}, index=(wish or {}).get("cc_index"))
        for prompt, wish in zip(prompts, wishes)
    ]
    assert serve(engine, prompts, [greedy(12, extra_args=wish) for wish in wishes]) == expected


@pytest.fixture(scope="module")
def chunks(folder):
    """Prompts are cut into chunks of at most 40 tokens."""
    return start(folder, max_num_batched_tokens=40)


def test_chunked_prompts(model, chunks):
    prompts = prompts_of([1, 39, 40, 41, 80, 81, 120, 200], seed=2)
    assert serve(chunks, prompts, greedy(6)) == [generate(model, prompt, 6) for prompt in prompts]
    indices = [0, 38, 3, 39, 40, 0, 79, 160]
    expected = [generate(model, prompt, 6, index=index) for prompt, index in zip(prompts, indices)]
    assert serve(chunks, prompts, [greedy(6, extra_args={"cc_index": index}) for index in indices]) == expected


def conversation(model, engine, answer):
    """Turns of a chat: each prompt holds the earlier prompts and answers. Returns how many were right, and cached."""
    prompt, right, cached = prompts_of([50], seed=3)[0], [], 0
    for turn, question in enumerate(prompts_of([20] * TURNS, seed=4)):
        expected = generate(model, prompt, answer)
        (output,) = ask(engine, [prompt], greedy(answer))
        (plain,) = serve(engine, [prompt], greedy(answer, extra_args={"cc": False}))
        right += [list(output.outputs[0].token_ids) == expected, plain == generate(model, prompt, answer, plain=True)]
        cached += output.num_cached_tokens
        prompt = [*prompt, *expected, *question]
        assert turn < TURNS
    return right, cached


def test_chat_turns_share_the_prefix_cache(model, engine):
    engine.reset_prefix_cache()
    right, cached = conversation(model, engine, answer=20)
    assert all(right)
    assert cached > 0, "nothing was read from the cache, so nothing was tested"


def test_without_salted_hashes_some_turns_come_out_wrong(model, engine, monkeypatch):
    monkeypatch.setattr("cc_model.integrations.vllm.scheduler.salted", lambda hasher, first, salt: hasher)
    engine.reset_prefix_cache()
    right, _ = conversation(model, engine, answer=20)
    engine.reset_prefix_cache()
    assert not all(right)


@pytest.fixture(scope="module")
def cramped(folder):
    """Sixteen blocks of 32 tokens: too few for the requests below, so that some are preempted."""
    return start(folder, num_gpu_blocks_override=17, max_num_batched_tokens=96)


def test_preempted_requests_connect_anew(model, cramped):
    prompts = prompts_of([60, 61, 62, 63, 64, 65, 30, 90], seed=5)
    before = scheduler_of(cramped).cc_counts.connected
    assert serve(cramped, prompts, greedy(40)) == [generate(model, prompt, 40) for prompt in prompts]
    assert scheduler_of(cramped).cc_counts.connected - before > len(prompts), "nothing was preempted"


@pytest.fixture(scope="module")
def ahead(folder):
    """Steps are scheduled before the one in front has its tokens, which vLLM's CPU platform turns off."""
    from vllm.platforms.cpu import CpuPlatform

    stock = CpuPlatform.check_and_update_config.__func__

    def with_steps_ahead(cls, config):
        stock(cls, config)
        config.scheduler_config.async_scheduling = True

    patch = pytest.MonkeyPatch()
    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(with_steps_ahead))
    yield start(folder, num_gpu_blocks_override=17, max_num_batched_tokens=96)
    patch.undo()


def test_steps_scheduled_ahead(model, ahead):
    assert type(scheduler_of(ahead)).__name__ == "ConnectedAhead"
    prompts = prompts_of([1, 2, 31, 32, 33, 60, 95, 96, 97, 120], seed=6)
    wishes = [None, {"cc": False}, {"cc_index": 3}, None, None, {"cc_index": 0}, None, {"cc": False}, None, None]
    before = scheduler_of(ahead).cc_counts.connected
    expected = [
        generate(model, prompt, 40, plain=wish == {"cc": False}, index=(wish or {}).get("cc_index"))
        for prompt, wish in zip(prompts, wishes)
    ]
    assert serve(ahead, prompts, [greedy(40, extra_args=wish) for wish in wishes]) == expected
    assert scheduler_of(ahead).cc_counts.connected - before > len(prompts) - 2, "nothing was preempted"


@pytest.mark.long
def test_compiled_layers(model, folder):
    """The op stands in a graph that torch.compile makes of the decoder."""
    prompts = prompts_of([1, 7, 40, 100], seed=7)
    compiled = start(folder, enforce_eager=False)
    assert serve(compiled, prompts, greedy(8)) == [generate(model, prompt, 8) for prompt in prompts]
