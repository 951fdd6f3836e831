"""What one process of an FSDP2 group does besides training: saving, loading, generating, fitting."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_steps import RATE, STEPS, sharded, share, training_model, whole
from model_pairs import at_end, batch, pair
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from cc_model import patch_model, unpatch_model
from cc_model.testing import random_matrix, tiny_model

GREEDY = {"max_new_tokens": 6, "do_sample": False}


def _train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(**share(dist.get_rank(), step)).loss.backward()
        optimizer.step()


def _with_optimizer(seed: int) -> tuple[Any, Any]:
    model = training_model(seed=seed)
    model = sharded(model)
    return model, torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)


def resumed(folder: str) -> dict[str, Any]:
    """Weights after all steps: without interruption, and by another model that loads the sharded checkpoint."""
    model, optimizer = _with_optimizer(seed=0)
    _train(model, optimizer, range(1))
    states = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
    dcp.save(states, checkpoint_id=folder)
    _train(model, optimizer, range(1, STEPS))
    other, other_optimizer = _with_optimizer(seed=1)
    states = dict(zip(("model", "optimizer"), get_state_dict(other, other_optimizer)))
    dcp.load(states, checkpoint_id=folder)
    set_state_dict(other, other_optimizer, model_state_dict=states["model"], optim_state_dict=states["optimizer"])
    _train(other, other_optimizer, range(1, STEPS))
    return {"whole": whole(model.state_dict()), "resumed": whole(other.state_dict())}


def saved(folder: str) -> dict[str, torch.Tensor]:
    """Save the model, sharded and with a matrix, by `save_pretrained`; the weights that it has."""
    model = training_model()
    model.cc.transform_matrix = random_matrix(model)
    model = sharded(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)  # whole on rank 0, empty elsewhere
    model.save_pretrained(folder, state_dict=state, is_main_process=dist.get_rank() == 0)
    return whole(model.state_dict())


def refused_saves(folder: str) -> list[str]:
    """The errors of saves that would write the shards of one process, or nothing, in the place of whole weights."""
    model = sharded(training_model())
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    messages = []
    wrong = [{}, {"is_main_process": False}, {"plain": True}, {"state_dict": model.state_dict()}]
    for options in (*wrong, *([] if state else [{"state_dict": state}])):
        try:
            model.save_pretrained(folder, **options)
        except ValueError as error:
            messages.append(str(error))
    return messages


def generated() -> list[torch.Tensor]:
    """Tokens with the matrix and with the English prompt; the second prompts have their index in the middle."""
    _, model = pair(matrix=True)
    model = sharded(model)
    data = batch()
    pivot = {name: data[name] for name in ("pivot_input_ids", "pivot_attention_mask")}
    ids = data["input_ids"]
    return [
        model.generate(ids, **GREEDY),
        model.generate(ids, connection_index=torch.tensor([3, 5, -1]), **GREEDY),
        model.generate(ids, **pivot, **GREEDY),
    ]


def evaluated_between_steps(wrap: bool) -> list[torch.Tensor]:
    """Logits with the matrix, in evaluation mode, before each of several steps of the optimizer."""
    _, model = pair(matrix=True)
    model = sharded(model) if wrap else model
    weight = model.cc.decision_maker.weight
    optimizer = torch.optim.SGD([weight], lr=2.0)
    data = batch(rows=4)
    found = []
    for _ in range(8):
        with torch.no_grad():
            found.append(model(data["input_ids"], **at_end(data["input_ids"])).logits)
        model(**data).loss.backward()
        weight.grad.copy_(weight.detach())  # larger than its own gradient: the step turns W into −W
        optimizer.step()
    return found


def refused() -> list[str]:
    """The errors of patching and unpatching what is sharded."""
    messages = []
    for model, change in ((tiny_model(), patch_model), (patch_model(tiny_model()), unpatch_model)):
        before = copy.copy(sharded(model).__dict__)
        try:
            change(model)
        except ValueError as error:
            messages.append(str(error))
        assert model.__dict__ == before
    return messages
