"""What requests may ask for beside tokens, what is refused, and that plain requests are vLLM's own."""

from __future__ import annotations

import logging

import pytest
import torch
from served import ask, generate, greedy, prompts_of, scheduler_of, serve, start, vllm

from cc_model import connection_disabled

VLLMValidationError = pytest.importorskip("vllm.exceptions").VLLMValidationError

PROMPTS = prompts_of([3, 33, 64, 90], seed=10)


def sampled(seed, **options):
    return vllm.SamplingParams(temperature=1.0, seed=seed, max_tokens=12, ignore_eos=True, detokenize=False, **options)


def test_seeded_requests_draw_the_same_alone_and_in_a_batch(engine):
    alone = [serve(engine, [prompt], sampled(seed))[0] for seed, prompt in enumerate(PROMPTS)]
    together = serve(engine, [*PROMPTS, *PROMPTS], [sampled(seed) for seed in range(4)] + [greedy(12)] * 4)
    assert together[:4] == alone
    assert serve(engine, [PROMPTS[0]], sampled(7))[0] != alone[0]


def test_a_dropped_sample_takes_nothing_from_a_seed(model, engine):
    """Of one likely token each, drawn with the seed: as many draws as tokens, and those of `generate`."""
    assert serve(engine, PROMPTS, sampled(1, top_k=1)) == [generate(model, prompt, 12) for prompt in PROMPTS]


def test_penalties(model, engine):
    expected = [generate(model, prompt, 12, repetition_penalty=1.3) for prompt in PROMPTS]
    assert serve(engine, PROMPTS, greedy(12, repetition_penalty=1.3)) == expected
    assert expected != [generate(model, prompt, 12) for prompt in PROMPTS]


def logprobs_of(model, prompt, tokens, index):
    """Log-probabilities `(T + n − 1, V)` at every token of prompt and answer, connected at `index`."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    with torch.no_grad():
        return model(ids, connection_index=torch.tensor([index])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("index", [None, 2, 0])
def test_logprobs_of_prompt_and_answer(model, engine, index):
    wish = None if index is None else {"cc_index": index}
    outputs = ask(engine, PROMPTS, greedy(4, logprobs=2, prompt_logprobs=2, extra_args=wish))
    for prompt, output in zip(PROMPTS, outputs):
        tokens = list(output.outputs[0].token_ids)
        at = len(prompt) - 1 if index is None else index
        expected = logprobs_of(model, prompt, tokens, at)
        given = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        assert len(given) == len(expected)
        for row, (reference, values) in enumerate(zip(expected, given)):
            assert len(values) >= 2
            for token, value in values.items():
                assert abs(value.logprob - reference[token]) < 2e-4, (row, token)


def test_several_answers_to_a_request(model, engine):
    (output,) = ask(engine, PROMPTS[1:2], greedy(6, n=1))
    many = vllm.SamplingParams(n=3, temperature=1.0, seed=3, top_k=1, max_tokens=6, ignore_eos=True, detokenize=False)
    (branches,) = ask(engine, PROMPTS[1:2], many)
    assert [list(b.token_ids) for b in branches.outputs] == [list(output.outputs[0].token_ids)] * 3


@pytest.mark.long
def test_plain_requests_are_those_of_a_plain_engine(model, engine, tmp_path):
    """Tokens, draws and log-probabilities, equal to the last bit."""
    model.save_pretrained(tmp_path, plain=True)
    stock = start(tmp_path)
    assert type(stock.llm_engine.engine_core.engine_core.scheduler).__module__.startswith("vllm.")
    for params, plain in ((greedy, {}), (sampled, {"seed": 5})):
        wanted = params(**plain, logprobs=3)
        given = params(**plain, logprobs=3, extra_args={"cc": False})
        for a, b in zip(ask(stock, PROMPTS, wanted), ask(engine, PROMPTS, given)):
            assert a.outputs[0].token_ids == b.outputs[0].token_ids
            assert [[(t, v.logprob) for t, v in row.items()] for row in a.outputs[0].logprobs] == [
                [(t, v.logprob) for t, v in row.items()] for row in b.outputs[0].logprobs
            ]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"cc": "no"}, r"extra_args\['cc'\]: expected true or false, got 'no'"),
        ({"cc_index": 33}, r"extra_args\['cc_index'\]: expected an int in \[0, 33\), got 33"),
        ({"cc_index": True}, "expected an int"),
        ({"cc": False, "cc_index": 1}, "expected none beside cc: false, got 1"),
        ({"cc_idx": 1}, "expected cc or cc_index, got 'cc_idx'"),
    ],
)
def test_what_cannot_be_is_told_to_the_sender(model, engine, monkeypatch, wish, message):
    with pytest.raises(VLLMValidationError, match=message):
        serve(engine, [PROMPTS[1]], greedy(4, extra_args=wish))
    # Past a front end that does not know: an error of the request, and the engine serves on.
    monkeypatch.setattr("cc_model.integrations.vllm.front.request_index", lambda request: None)
    outputs = ask(engine, PROMPTS[:3], [greedy(4), greedy(4, extra_args=wish), greedy(4)])
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert [list(outputs[i].outputs[0].token_ids) for i in (0, 2)] == [generate(model, PROMPTS[i], 4) for i in (0, 2)]


def test_beam_search_is_refused(engine):
    with pytest.raises(VLLMValidationError, match="beam search"):
        engine.beam_search([{"prompt_token_ids": PROMPTS[0]}], vllm.sampling_params.BeamSearchParams(2, 4))


def test_counts_and_log(engine, caplog):
    counts = scheduler_of(engine).cc_counts
    before = counts.connected, counts.again
    with caplog.at_level(logging.DEBUG, "vllm.cc_model"):
        serve(engine, PROMPTS[1:3], [greedy(2, extra_args={"cc_index": 20}), greedy(2, extra_args={"cc": False})])
    assert (counts.connected - before[0], counts.again - before[1]) == (1, 13)
    messages = [record.getMessage() for record in caplog.records if record.name == "vllm.cc_model"]
    assert any("connects at token 20 of 33, attempt 0; 13 tokens run again" in message for message in messages)
    assert any("runs without the connection" in message for message in messages)


def test_disabled_is_the_plain_model(model, engine):
    """`cc: false` is what `connection_disabled` is here."""
    with connection_disabled(model):
        expected = [generate(model, prompt, 5) for prompt in PROMPTS]
    assert serve(engine, PROMPTS, greedy(5, extra_args={"cc": False})) == expected
