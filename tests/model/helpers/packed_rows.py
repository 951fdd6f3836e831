"""Batches written as packed rows: several examples one after the other in one row."""

from __future__ import annotations

import torch

INDEX = [6, 5, 4]  # of batch(), within each row


def packed(data, index=INDEX, rows=1):
    """The examples of a padded batch one after the other; `rows` > 1 repeats the packed row."""
    keep = data["attention_mask"].bool()
    lengths = keep.sum(1).tolist()
    made = {name: data[name][keep][None] for name in ("input_ids", "labels")}
    made["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    flat = torch.where(torch.tensor(index) >= 0, starts + torch.tensor(index), -1)
    total = sum(lengths)
    made = {name: value.repeat(rows, 1) for name, value in made.items()}
    made["connection_index"] = torch.cat([torch.where(flat >= 0, flat + row * total, -1) for row in range(rows)])
    for name in ("pivot_input_ids", "pivot_attention_mask"):
        made[name] = data[name].repeat(rows, 1)
    return made
