"""The lm-eval model type `cc`: its prompts are the collator's, its scores and answers the connected model's."""

import random

import pytest
import torch
from model_pairs import pair
from word_tokenizers import ROW, make_tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM

from cc_model import ParallelCollator, connection_disabled
from cc_model.integrations.lm_eval import ConnectedLM
from cc_model.scoring import score_choices

FAMILIES = ["llama3", "qwen2", "mistral", "plain"]
ASKED = ["eins", "eins zwei drei", "You are", "drei drei zwei eins two three four one"]
ANSWERS = ["zwei", "drei two", "four three two"]


def made(family="plain", cls=ConnectedLM, matrix=True, **options):
    """A model of lm-eval and what it is made from."""
    tokenizer = make_tokenizer(family)
    stock, model = pair(matrix=matrix)
    lm = cls(model if cls is ConnectedLM else stock, tokenizer=tokenizer, batch_size=3, **options)
    lm.tokenizer = tokenizer
    return lm, model, tokenizer


def choices(lm, prompts=ASKED):
    rendered = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in prompts]
    pairs = [(prompt, answer) for prompt in rendered for answer in ANSWERS]
    return [Instance("loglikelihood", {}, args, number) for number, args in enumerate(pairs)]


def generations(prompts, **options):
    return [Instance("generate_until", {}, (prompt, {"until": ["never"], **options}), 0) for prompt in prompts]


def test_it_is_registered():
    assert get_model("cc") is ConnectedLM


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_training(family, monkeypatch):
    lm, _, tokenizer = made(family)
    collator = ParallelCollator(tokenizer)
    expected = collator.encoder.encode([ROW], answers=True)[0]
    prompt = lm.apply_chat_template([{"role": "user", "content": ROW["instruction"]}])
    context, continuation = lm._encode_pair(prompt, " " + ROW["output"])
    assert context == expected.prompt
    assert continuation == expected.answer[:-1]  # without the end of the turn
    batch, mask = lm.tok_batch_encode([prompt])
    torch.testing.assert_close(batch, collator.prompts([ROW])["input_ids"])
    assert mask.all()
    # Words do not show spaces; characters do. The answer begins as in training, whatever lm-eval puts before it.
    monkeypatch.setattr(lm, "tok_encode", lambda text, **_: list(text))
    prefix = {"plain": " ", "mistral": " "}.get(family, "")
    for given in ("zwei", " zwei"):
        assert lm._encode_pair(prompt, given) == (list(prompt), list(prefix + "zwei"))


def test_a_template_without_the_token_that_the_tokenizer_adds():
    lm, _, tokenizer = made("mistral")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{- bos_token }}", "")
    prompt = lm.apply_chat_template([{"role": "user", "content": ROW["instruction"]}])
    expected = ParallelCollator(tokenizer).prompts([ROW])["input_ids"]
    torch.testing.assert_close(lm.tok_batch_encode([prompt])[0], expected)
    assert [lm._encode_pair(prompt, "zwei")[0]] == expected.tolist()


def test_system_turn():
    lm, _, _ = made("llama3", system="zwei drei")
    assert "system<|end_header_id|>\n\nzwei drei<|eot_id|>" in lm.apply_chat_template(
        [{"role": "user", "content": "a"}]
    )


@pytest.mark.parametrize("connection", [True, False])
def test_loglikelihoods_in_the_order_of_the_requests(connection):
    lm, model, tokenizer = made(connection=connection)
    requests = choices(lm) * 2  # twice the same
    random.Random(0).shuffle(requests)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    for request, score in zip(requests, found):
        prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in request.args)
        with lm.mode():
            ((alone,),) = score_choices(model, [prompt], [[answer]])
        assert score[0] == pytest.approx(alone.logprob, abs=1e-5)
        assert score[1] == alone.greedy


def test_without_the_connection_it_is_lm_evals_own_model():
    lm, _, _ = made(connection=False)
    stock, _, _ = made(cls=HFLM)
    texts = [f"eins zwei {word}" for word in ASKED]
    requests = [Instance("loglikelihood", {}, (text, " " + answer), 0) for text in texts for answer in ANSWERS]
    expected = stock.loglikelihood(requests, disable_tqdm=True)
    for found, (logprob, greedy) in zip(lm.loglikelihood(requests, disable_tqdm=True), expected):
        assert found == (pytest.approx(logprob, abs=1e-5), greedy)
    asked = generations(texts, max_gen_toks=5)
    assert lm.generate_until(asked, disable_tqdm=True) == stock.generate_until(asked, disable_tqdm=True)
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    assert lm.loglikelihood_rolling(rolling, True) == pytest.approx(
        stock.loglikelihood_rolling(rolling, True), abs=1e-5
    )


def test_lm_evals_own_model_type_does_not_guess():
    """`HFLM` hands prompt and answer over in one: a score raises, a plain score is the plain model's."""
    stock, model, tokenizer = made(cls=HFLM)
    patched = HFLM(model, tokenizer=tokenizer, batch_size=3)
    patched.tokenizer = tokenizer
    texts = [f"eins zwei {word}" for word in ASKED]
    requests = [Instance("loglikelihood", {}, (text, " " + answer), 0) for text in texts for answer in ANSWERS]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    for ask, given in (("loglikelihood", requests), ("loglikelihood_rolling", rolling)):
        with pytest.raises(ValueError, match="connection_index: expected the token of each row to connect"):
            getattr(patched, ask)(given, disable_tqdm=True)
        with connection_disabled(model):
            found = getattr(patched, ask)(given, disable_tqdm=True)
        expected = getattr(stock, ask)(given, disable_tqdm=True)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lm_evals_own_model_type_generates_connected(batch_size):
    lm, model, tokenizer = made()
    patched = HFLM(model, tokenizer=tokenizer, batch_size=batch_size)
    patched.tokenizer = tokenizer
    asked = generations([lm.apply_chat_template([{"role": "user", "content": text}]) for text in ASKED], max_gen_toks=5)
    assert patched.generate_until(asked, disable_tqdm=True) == lm.generate_until(asked, disable_tqdm=True)


def test_generation_connects_and_the_switch_works():
    lm, model, tokenizer = made()
    prompts = [lm.apply_chat_template([{"role": "user", "content": text}]) for text in ASKED]
    requests = generations(prompts, max_gen_toks=5)
    connected = lm.generate_until(requests, disable_tqdm=True)
    for prompt, text in zip(prompts, connected):
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        tokens = model.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1] :]
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)
    lm.connection = False
    assert lm.generate_until(requests, disable_tqdm=True) != connected


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_published_position(family):
    lm, model, tokenizer = made(family, position="published")
    collator = ParallelCollator(tokenizer, position="published")
    requests = choices(lm)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    for number, (request, score) in enumerate(zip(requests, found)):
        batch = collator.prompts([{"instruction": ASKED[number // len(ANSWERS)]}], pivot=False)
        _, answer = lm._encode_pair(*request.args)
        index = batch["connection_index"].tolist()
        assert index != [batch["input_ids"].shape[1] - 1]
        ((alone,),) = score_choices(model, batch["input_ids"].tolist(), [[answer]], index)
        assert score[0] == pytest.approx(alone.logprob, abs=1e-5)
    prompts = [request.args[0] for request in requests[:: len(ANSWERS)]]  # of different lengths, so padded
    for asked, text in zip(ASKED, lm.generate_until(generations(prompts, max_gen_toks=4), True)):
        batch = collator.prompts([{"instruction": asked}], pivot=False)
        tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_long_prompts_lose_their_beginning(caplog):
    lm, model, tokenizer = made(max_length=8)
    prompt = lm.apply_chat_template([{"role": "user", "content": "eins zwei drei one two three four"}])
    requests = [Instance("loglikelihood", {}, (prompt, answer), 0) for answer in ANSWERS]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-6:]  # 8 + 1 − 3 tokens of the longest answer
    answers = [lm._encode_pair(prompt, answer)[1] for answer in ANSWERS]
    expected = score_choices(model, [ids], [answers])[0]
    assert [score for score, _ in found] == pytest.approx([score.logprob for score in expected], abs=1e-5)
    assert "lost its beginning; 6 fit beside the choices" in caplog.text


def test_progress_counts_requests():
    lm, _, _ = made()
    done = []
    lm.progress = done.append
    requests = choices(lm)
    lm.loglikelihood(requests)
    lm.generate_until(generations([request.args[0] for request in requests], max_gen_toks=2))
    assert sum(done) == 2 * len(requests)


def test_errors():
    lm, _, _ = made()
    with pytest.raises(ValueError, match="context: expected a prompt to connect, got an empty one in task 'xnli_ar'"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("", "a"), 0, metadata=("xnli_ar", 0, 1))])
    with pytest.raises(ValueError, match="loglikelihood_rolling: a text has no prompt to connect"):
        lm.loglikelihood_rolling([])
    with pytest.raises(ValueError, match="connection: expected a patched model with a Transform Matrix"):
        made(matrix=False)
    with pytest.raises(ValueError, match="position: expected 'last' or 'published', got 'first'"):
        made(position="first")
    with pytest.raises(ValueError, match="peft: not supported by the model type 'cc'"):
        made(peft="adapter")
    published, _, _ = made("qwen2", position="published")
    with pytest.raises(ValueError, match="position: 'published' finds no token in a prompt of 1"):
        published.loglikelihood([Instance("loglikelihood", {}, ("eins", "zwei"), 0)], disable_tqdm=True)
    short, _, _ = made(max_length=2)
    with pytest.raises(ValueError, match="max_length: expected more than the 2 tokens of a choice"):
        short.loglikelihood([Instance("loglikelihood", {}, ("eins", " ".join(["zwei"] * 4)), 0)], disable_tqdm=True)


def test_from_a_folder(tmp_path):
    """As the command line makes it, in both modes; tests/train/test_evaluate.py runs the command."""
    lm, model, tokenizer = made("llama3")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for connection in (True, False):
        lm.connection = connection
        more = {"batch_size": 2, "device": "cpu"}
        loaded = ConnectedLM.create_from_arg_string(f"pretrained={tmp_path},connection={connection}", more)
        found = [score for score, _ in loaded.loglikelihood(choices(loaded), disable_tqdm=True)]
        assert found == pytest.approx(
            [score for score, _ in lm.loglikelihood(choices(lm), disable_tqdm=True)], abs=1e-5
        )
