"""Small tokenizers with the special tokens and chat templates of each family, and rows in their words."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from train.common.chat_templates import CHAT_TEMPLATES

MARKED = {
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "mistral": ["<s>", "[INST]", "[/INST]", "</s>"],
    "plain": ["<s>", "</s>"],
}
WORDS = "user assistant system User Assistant : You are a helpful assistant. eins zwei drei one two three four"
ROW = {"instruction": "eins zwei drei", "instruction_en": "one two three four", "output": "zwei drei"}
SHORT = {"instruction": "drei", "instruction_en": "", "output": "eins", "language": "de", "id": 7}


def make_tokenizer(family: str, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """One token per word, with the special tokens and the chat template of a family."""
    special = MARKED[family]
    words = ["<unk>", "<pad>", "\n", "\n\n", *special, *WORDS.split()]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(words))}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n+"), "isolated"),
            pre_tokenizers.Split(":", "isolated"),
            pre_tokenizers.Split(" ", "removed"),
        ]
    )
    if adds_bos and family != "qwen2":
        core.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], core.token_to_id(special[0]))]
        )
    ends = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token=None if family == "qwen2" else special[0],
        eos_token=ends.get(family, "</s>"),
        additional_special_tokens=special,
    )
    tokenizer.chat_template = CHAT_TEMPLATES.get(family)
    return tokenizer
