"""Saving, loading and generating with a model that FSDP2 has sharded over two processes."""

from __future__ import annotations

import sharded_models as steps
import torch
from model_pairs import at_end, batch, pair

from cc_model import from_pretrained
from cc_model.testing import random_matrix


def test_sharded_checkpoint_resumes(two_processes, tmp_path):
    for result in two_processes.run(steps.resumed, str(tmp_path / "checkpoint")):
        assert all(torch.equal(weight, result["resumed"][name]) for name, weight in result["whole"].items())
        assert result["whole"]["cc.decision_maker.weight"].any()


def test_save_pretrained(two_processes, tmp_path):
    weights = two_processes.run(steps.saved, str(tmp_path))[0]
    model = from_pretrained(tmp_path)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert torch.equal(model.cc.transform_matrix, random_matrix(model))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
    assert loaded.keys() == weights.keys()


def test_a_save_of_shards_raises(two_processes, tmp_path):
    folder = tmp_path / "shards"
    first, second = two_processes.run(steps.refused_saves, str(folder))
    message = (
        "state_dict: expected the whole weights of a sharded model, got {}; all processes gather them "
        "(get_model_state_dict of torch.distributed.checkpoint.state_dict with full_state_dict=True, or "
        "Accelerator.get_state_dict), then rank 0 saves"
    )
    assert first == [message.format(got) for got in (None, None, None, "shards")]
    assert second[:4] == first
    assert "got none of them; get_model_state_dict" in second[4]
    assert not folder.exists()


def test_generate(two_processes):
    _, model = pair(matrix=True)
    data = batch()
    pivot = {name: data[name] for name in ("pivot_input_ids", "pivot_attention_mask")}
    expected = [
        model.generate(data["input_ids"], **extra, **steps.GREEDY)
        for extra in ({}, {"connection_index": torch.tensor([3, 5, -1])}, pivot)
    ]
    assert not torch.equal(expected[0], expected[2])
    for tokens in two_processes.run(steps.generated):
        assert all(torch.equal(*both) for both in zip(tokens, expected))


def test_optimizer_steps_change_the_decision(two_processes):
    expected = steps.evaluated_between_steps(wrap=False)
    assert not torch.equal(*expected[:2])
    for found in two_processes.run(steps.evaluated_between_steps, wrap=True):
        for logits, wanted in zip(found, expected):
            torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_weights_that_change_without_a_new_version():
    """As FSDP2 gathers them: into the same memory, past the version counter."""
    _, model = pair(matrix=True)
    ids = batch()["input_ids"]
    weight = model.cc.decision_maker.weight
    with torch.no_grad():
        before = model(ids, **at_end(ids)).logits
    model(**batch())  # the forward that a step of the optimizer follows
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(weight):
        weight.neg_()
    with torch.no_grad():
        after = model(ids, **at_end(ids)).logits
    model.cc.decision_maker._folded = None
    with torch.no_grad():
        assert torch.equal(after, model(ids, **at_end(ids)).logits)
    assert not torch.equal(after, before)


def test_patching_what_is_sharded_raises(two_processes):
    for patching, unpatching in two_processes.run(steps.refused):
        assert patching == (
            "model: expected a model that is not sharded yet, got fully_shard (FSDP2) on 'FSDPLlamaForCausalLM'; call "
            "patch_model before fully_shard or Accelerator.prepare"
        )
        assert "unpatch_model" in unpatching
