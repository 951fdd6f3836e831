"""The chat templates that CC-Tuning was published with, for base models whose tokenizer has none.

| name | models | text of a prompt |
|---|---|---|
| `llama3` | Llama 3 | `<|begin_of_text|>` user header, question, `<|eot_id|>`, assistant header |
| `qwen2` | Qwen2, Qwen2.5, Qwen3 | system turn, user turn, `<|im_start|>assistant` |
| `mistral` | Mistral | `<s>[INST] question[/INST]` |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LLAMA3 = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\n\n' ~ message['content'] ~ '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
QWEN2 = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
MISTRAL = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' ~ message['content'] ~ '[/INST]' }}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' ~ message['content'] ~ eos_token }}"
    "{%- else %}{{- raise_exception('a system turn is not supported by this template') }}"
    "{%- endif %}"
    "{%- endfor %}"
)
CHAT_TEMPLATES = {"llama3": LLAMA3, "qwen2": QWEN2, "mistral": MISTRAL}


def set_chat_template(tokenizer: Any, template: str | None) -> None:
    """Give `tokenizer` a chat template: a name of this module, the path of a Jinja file, or None to keep its own.

    Raises:
        ValueError: neither a name nor a file, or the tokenizer lacks the template's tokens.

    Example:
        >>> from types import SimpleNamespace
        >>> tokenizer = SimpleNamespace(chat_template=None, get_vocab=lambda: {"[INST]": 3, "[/INST]": 4})
        >>> set_chat_template(tokenizer, "mistral")
        >>> tokenizer.chat_template == MISTRAL
        True
    """
    if template is None:
        return
    if template in CHAT_TEMPLATES:
        tokens = {
            "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "qwen2": ("<|im_start|>", "<|im_end|>"),
            "mistral": ("[INST]", "[/INST]"),
        }[template]
        missing = [token for token in tokens if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(f"chat_template: {template!r} expects the token {missing[0]}, which the tokenizer lacks")
        tokenizer.chat_template = CHAT_TEMPLATES[template]
    elif Path(template).is_file():
        tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    else:
        raise ValueError(f"chat_template: expected {', '.join(CHAT_TEMPLATES)} or a Jinja file, got {template!r}")


__all__ = ["CHAT_TEMPLATES", "set_chat_template"]
