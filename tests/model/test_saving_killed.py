"""A process that is killed while a save replaces files leaves a folder that is old, new, or does not load."""

from __future__ import annotations

import pytest
import torch
from killed_saves import loaded, save_killed_at
from model_pairs import pair
from transformers import AutoModelForCausalLM

from cc_model import CCConfig, from_pretrained

SHARDS = {"max_shard_size": "200KB"}


def same(weights, model):
    return all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in weights.items())


WAYS = {
    "one file": ({}, {}),
    "to shards": ({}, SHARDS),
    "from shards": (SHARDS, {}),
    "shards": (SHARDS, SHARDS),
    "to plain": ({}, {"plain": True}),
    "from plain": ({"plain": True}, {}),
    "variant": ({"variant": "bf16"}, {"variant": "bf16", **SHARDS}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_kill_leaves_no_mixture(way, tmp_path):
    before, after = WAYS[way]
    variant = {"variant": after["variant"]} if "variant" in after else {}
    (_, old), (_, new) = pair(config=CCConfig(temperature=0.5), matrix=True), pair(seed=3, matrix=True)
    count, seen = 0, []
    while True:
        folder = tmp_path / str(count)
        old.save_pretrained(folder, **before)
        killed = save_killed_at(count, new, folder, after)
        for config in ({}, {"config": old.config}):  # the second way needs no config.json
            connected = loaded(lambda f=folder, c=config: from_pretrained(f, **variant, **c))
            plain = loaded(lambda f=folder, c=config: AutoModelForCausalLM.from_pretrained(f, **variant, **c))
            if connected is not None:
                (whole,) = (one for one in (old, new) if one.cc.config == connected.cc.config)
                assert same(connected.state_dict(), whole), count
                assert same(plain.state_dict(), whole), count
            if plain is not None:
                assert same(plain.state_dict(), old) or same(plain.state_dict(), new), count
            if connected is None and plain is None:  # servers read whatever weights they find
                assert not (folder / "config.json").exists(), count
            seen.append(connected is None)
        if not killed:
            break
        assert list(folder.glob(".saving-*"))
        new.save_pretrained(folder, **after)
        assert not list(folder.glob(".saving-*"))
        assert same(AutoModelForCausalLM.from_pretrained(folder, **variant).state_dict(), new)
        count += 1
    assert count > 3
    assert any(seen)
