"""The token positions of the published code: counted from a marker token of each family's chat template.

| template | marker | position in a prompt | which token that is |
|---|---|---|---|
| `llama3` | 2nd `<\\|end_header_id\\|>` | marker + 1 | the last prompt token |
| `qwen2` | 3rd `<\\|im_start\\|>` | marker + 1 | `assistant`, one before the last |
| `mistral` | 1st `[/INST]` | marker − 1 | the last token of the question, one before the last |

The counts assume the published templates: Llama 3 without a system turn, Qwen2 with one, one question. With other
templates the same rule gives another token, or none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Marker(NamedTuple):
    """A marker token, which occurrence counts, and the position relative to it."""

    token: str
    token_id: int  # in the published models' vocabularies
    occurrence: int  # from 1
    offset: int
    from_end: int  # tokens that follow the position in a prompt of the published template


MARKERS: Mapping[str, Marker] = {
    "llama3": Marker("<|end_header_id|>", 128007, occurrence=2, offset=1, from_end=0),
    "qwen2": Marker("<|im_start|>", 151644, occurrence=3, offset=1, from_end=1),
    "mistral": Marker("[/INST]", 4, occurrence=1, offset=-1, from_end=1),
}


def published_position(input_ids: Sequence[int], template: str, marker_id: int | None = None) -> int:
    """The position that the published code computes for a row of token ids.

        position = (index of the n-th marker) + offset        n and offset by template; −1 without an n-th marker

    The result is the published one also where that is no token of the row: −1, or `len(input_ids)`. The collator raises
    in both cases.

    Args:
        input_ids: token ids of one row, prompt alone or prompt and answer.
        template: `"llama3"`, `"qwen2"` or `"mistral"`.
        marker_id: id of the marker token; None for the published models' vocabularies.

    Raises:
        ValueError: unknown template.

    Source: positions recorded from the published CC-Tuning code, `tests/golden/positions.json`.

    Example:
        >>> published_position([1, 3, 100, 101, 4], "mistral")  # <s> [INST] 100 101 [/INST]
        3
        >>> published_position([7, 100], "llama3", marker_id=7)  # one marker, where the rule wants the second
        -1
    """
    if template not in MARKERS:
        raise ValueError(f"template: expected one of {', '.join(MARKERS)}, got {template!r}")
    marker = MARKERS[template]
    wanted = marker.token_id if marker_id is None else marker_id
    found = [index for index, token in enumerate(input_ids) if token == wanted]
    return found[marker.occurrence - 1] + marker.offset if len(found) >= marker.occurrence else -1


def detect_template(vocabulary: Mapping[str, int]) -> tuple[str, int]:
    """The template family whose marker token is in the vocabulary, and the marker's id.

    Raises:
        ValueError: no family's marker is in the vocabulary.

    Example:
        >>> detect_template({"[INST]": 3, "[/INST]": 4})
        ('mistral', 4)
    """
    for template, marker in MARKERS.items():
        if marker.token in vocabulary:
            return template, vocabulary[marker.token]
    markers = ", ".join(f"{marker.token} ({template})" for template, marker in MARKERS.items())
    raise ValueError(
        f"position: 'published' expects a tokenizer with one of the markers {markers}, got one without any; use "
        "position='last'"
    )


__all__ = ["MARKERS", "detect_template", "published_position"]
