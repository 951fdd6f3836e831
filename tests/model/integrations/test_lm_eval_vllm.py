"""lm-eval through vLLM, with a stand-in for its engine; tests/serving compares with the real one."""

import json
import os
import sys
from types import SimpleNamespace

import pytest
from engine_stand_in import stand_in
from transformers import GenerationConfig, LlamaConfig

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install 'cc-tuning[eval]')")

from lm_eval.api.instance import Instance
from model_pairs import pair
from word_tokenizers import make_tokenizer

from cc_model.integrations.lm_eval import ConnectedLM
from cc_model.integrations.lm_eval_vllm import LONGER, ServedLM
from cc_model.integrations.vllm_options import answering_params, engine_options, generation_config_of, score_of

ASKED = ["eins", "eins zwei drei", "You are", "drei drei zwei eins two three four one"]
ANSWERS = ["zwei", "drei two", "four three two"]


@pytest.fixture
def engines(monkeypatch):
    return stand_in(monkeypatch)


def both(folder, family="plain", patched=True, ends=None, **options):
    """The same folder in transformers and in the stand-in."""
    stock, model = pair(matrix=True)
    model = model if patched else stock
    model.generation_config = GenerationConfig(eos_token_id=ends, **options.pop("generation", {}))
    tokenizer = make_tokenizer(family)
    tokenizer.add_tokens([f"w{number}" for number in range(len(tokenizer), 256)])  # so that each token has a text
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {"tokenizer": tokenizer, "connection": patched, "max_length": 64, **options}
    return ConnectedLM(model, **made), ServedLM(folder, **made)


def prompts_of(lm):
    return [lm.apply_chat_template([{"role": "user", "content": text}]) for text in ASKED]


def scores(lm):
    asked = [(prompt, answer) for prompt in prompts_of(lm) for answer in ANSWERS]
    requests = [Instance("loglikelihood", {}, args, number) for number, args in enumerate(asked)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def answers(lm, until=("never",), tokens=6):
    options = {"until": list(until), "max_gen_toks": tokens}
    return lm.generate_until([Instance("generate_until", {}, (prompt, options), 0) for prompt in prompts_of(lm)], True)


def assert_equal(hf, served, **given):
    for (logprob, greedy), found in zip(scores(hf), scores(served), strict=True):
        assert found == (pytest.approx(logprob, abs=1e-4), greedy)
    expected = answers(hf, **given)
    assert answers(served, **given) == expected
    return expected


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("plain", {}),
        ("llama3", {"system": "zwei drei"}),
        ("qwen2", {"position": "published"}),
        ("mistral", {"position": "published"}),
        ("plain", {"max_length": 9}),
        ("plain", {"patched": False}),
        ("plain", {"generation": {"repetition_penalty": 1.4}}),
    ],
    ids=str,
)
def test_scores_and_answers_are_those_of_transformers(tmp_path, engines, family, options):
    hf, served = both(tmp_path, family, **options)
    expected = assert_equal(hf, served, tokens=3)
    assert len(set(expected)) > 1
    if options.get("patched", True):
        hf.connection = served.connection = False
        assert assert_equal(hf, served, tokens=3) != expected
    (engine,) = engines
    assert max(engine.asked) == len(ASKED) * len(ANSWERS), "all at once"


def test_it_stops_where_transformers_does(tmp_path, engines):
    """At a string, at an end of the generation config, and at the end of text."""
    hf, served = both(tmp_path)
    whole = answers(hf)
    word = whole[0].split()[2]
    stopped = assert_equal(hf, served, until=[word])
    assert stopped[0] == whole[0].split(word)[0] != whole[0]
    for lm in (hf, served):
        lm.model.generation_config.eos_token_id = [hf.tokenizer.convert_tokens_to_ids(word), 1]
    assert assert_equal(hf, served)[0] == whole[0].split(word)[0] + word


def test_texts_without_a_prompt(tmp_path, engines):
    hf, served = both(tmp_path)
    hf.connection = served.connection = False
    texts = [Instance("loglikelihood_rolling", {}, (f"eins {text}",), 0) for text in ASKED]
    assert served.loglikelihood_rolling(texts, True) == pytest.approx(hf.loglikelihood_rolling(texts, True), abs=1e-4)


def test_progress_and_the_end(tmp_path, engines):
    _, served = both(tmp_path)
    done = []
    served.progress = done.append
    scores(served), answers(served)
    assert sum(done) == len(ASKED) * (len(ANSWERS) + 1)
    served.close()
    served.close()
    assert engines[0].closed == 1
    with pytest.raises(ValueError, match="engine: expected a running one, got one that was closed"):
        scores(served)


def test_what_the_engine_is_told(tmp_path, engines, monkeypatch):
    """Weights as they were saved, one token more than the model has only where it has the others."""
    seen = []
    monkeypatch.delenv(LONGER, raising=False)
    engine = lambda **given: seen.append((os.environ.get(LONGER), given))  # noqa: E731
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))
    both(tmp_path)
    seen.clear()
    ServedLM(tmp_path, batch_size=5, max_length=64, engine={"block_size": 32})
    limit = LlamaConfig.from_pretrained(tmp_path).max_position_embeddings
    for length in (None, limit + 1):
        ServedLM(tmp_path, max_length=length)
    assert LONGER not in os.environ
    first = seen[0][1]
    assert first == {
        **{"model": str(tmp_path), "dtype": "float32", "max_model_len": 65, "max_num_seqs": 5, "block_size": 32},
        "hf_overrides": {"architectures": ["CCLlamaForCausalLM"]},
    }
    assert [(variable, given["max_model_len"]) for variable, given in seen[1:]] == [
        ("1", limit + 1),
        (None, limit + 2),
    ]


def test_a_folder_for_serving_is_the_same(tmp_path):
    _, model = pair(matrix=True)
    for serve in (False, True):
        model.save_pretrained(tmp_path, serve=serve)
        made = engine_options(str(tmp_path), LlamaConfig.from_pretrained(tmp_path), "bfloat16", 8, None, {})
        assert made["hf_overrides"] == {"architectures": ["CCLlamaForCausalLM"]}
        assert made["dtype"] == "bfloat16"


def test_the_log_probability_of_a_choice_is_that_of_its_tokens():
    """And it is greedy where each token is the first."""
    told = {7: SimpleNamespace(logprob=-1.0, rank=1), 8: SimpleNamespace(logprob=-0.5, rank=2)}
    output = SimpleNamespace(
        prompt_logprobs=[None, {1: None}, {7: told[7]}], outputs=[SimpleNamespace(logprobs=[told])]
    )
    assert score_of(output, 2, [7, 8]) == (-1.5, False)
    assert score_of(output, 3, [7]) == (-1.0, True)


def test_errors(tmp_path, engines, monkeypatch):
    both(tmp_path)
    config = LlamaConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"engine: expected other options than model, .*, got dtype"):
        ServedLM(tmp_path, engine={"dtype": "float16"})
    with pytest.raises(ValueError, match=r"folder: expected what save_pretrained wrote, found no config\.json in 'x'"):
        ServedLM("x")
    with pytest.raises(ValueError, match=r"dtype: expected one, because the config\.json in .* names none"):
        engine_options(str(tmp_path), LlamaConfig(), "auto", 8, None, {})
    with pytest.raises(ValueError, match=r"model: expected one of .*Llama.* to be served, got OtherForCausalLM"):
        engine_options(str(tmp_path), LlamaConfig(architectures=["OtherForCausalLM"]), "float32", 8, None, {})
    with pytest.raises(ValueError, match=r"generation_kwargs: expected greedy answers with vLLM, got .*'top_p': 0.5"):
        answering_params(GenerationConfig(), 4, [], {"top_p": 0.5}, None)
    with pytest.raises(ValueError, match="generation_kwargs: expected greedy answers"):
        answering_params(GenerationConfig(), 4, [], {"do_sample": True}, None)
    fields = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({**fields, "no_repeat_ngram_size": 2}))
    with pytest.raises(ValueError, match=r"generation_config\.json: expected no no_repeat_ngram_size with vLLM, got 2"):
        ServedLM(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert generation_config_of(str(tmp_path), config).eos_token_id == config.eos_token_id
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"vllm: not installed, .*pip install 'cc-tuning\[vllm\]'"):
        ServedLM(tmp_path)


def test_a_folder_without_a_matrix(tmp_path, engines):
    _, model = pair()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="connection: expected a patched model with a Transform Matrix"):
        ServedLM(tmp_path, tokenizer=make_tokenizer("plain"))
    assert not engines


def test_a_plain_folder_does_not_connect(tmp_path, engines):
    stock, _ = pair()
    stock.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="connection: expected a patched model with a Transform Matrix"):
        ServedLM(tmp_path, tokenizer=make_tokenizer("plain"))
    assert not engines
