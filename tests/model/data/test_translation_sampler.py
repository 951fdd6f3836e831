"""TranslationSampler: every row once, K translations together, the same order everywhere and after a resume."""

from __future__ import annotations

import itertools

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import Dataset
from torch.utils.data import DataLoader

from cc_model.data.translation_sampler import TranslationSampler, english_keys


def keys(prompts=24, languages=8, plain=0):
    return [f"question {p}" for p in range(prompts) for _ in range(languages)] + [None] * plain


def cut(order, size):
    return [order[start : start + size] for start in range(0, len(order), size)]


@pytest.mark.parametrize("translations", [1, 2, 3, 4, 8, 22])
@pytest.mark.parametrize(("prompts", "languages", "plain"), [(24, 8, 0), (7, 5, 3), (1, 1, 0), (3, 22, 17), (0, 0, 9)])
@pytest.mark.parametrize(("batch_size", "batches", "processes"), [(4, 1, 1), (8, 2, 1), (4, 4, 2), (3, 2, 3)])
def test_every_row_once(translations, prompts, languages, plain, batch_size, batches, processes):
    made = keys(prompts, languages, plain)
    sampler = TranslationSampler(made, translations, batch_size, batches, processes)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert sorted(order) == list(range(len(made)))
        assert len(sampler) == len(made)


@pytest.mark.parametrize("translations", [2, 4])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_batch_holds_k_translations_of_each_prompt(translations, processes):
    """Where K divides the batch and the languages, no group is cut: a batch of 8 reads 8 / K prompts."""
    made = keys()
    sampler = TranslationSampler(made, translations, 8, 2, processes)
    for rows in cut(list(sampler), 8):
        read = [made[row] for row in rows]
        assert {read.count(prompt) % translations for prompt in read} == {0}
        assert len(set(read)) <= 8 / translations


@pytest.mark.parametrize("processes", [1, 2])
def test_a_window_holds_what_a_batch_cannot(processes):
    """K = 8 translations lie in four batches of 2, all of one process and of one step."""
    made = keys(prompts=16)
    order = list(TranslationSampler(made, 8, 2, 4, processes))
    for step in cut(cut(order, 2), 4 * processes):
        for process in range(processes):
            window = list(itertools.chain.from_iterable(step[process::processes]))
            assert len({made[row] for row in window}) == 1


def test_remainders_fill_windows():
    """Groups of 4, 4 and 2 with single rows in windows of 8: hardly a group is cut."""
    made = keys(prompts=40, languages=10, plain=37)
    order = list(TranslationSampler(made, 4, 8, 2))
    read = sum(len({made[row] or row for row in rows}) for rows in cut(order, 8))
    groups = 40 * 3 + 37
    assert groups <= read <= groups + 12


def test_shuffles():
    """Rows of a prompt, prompts, and both anew in each epoch; seeds and epochs are not each other's."""
    made = keys()
    orders = set()
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        sampler = TranslationSampler(made, 4, 8, seed=seed)
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
    assert len(orders) == 4
    first = [row // 8 for row in TranslationSampler(made, 4, 8)]
    assert first != sorted(first)
    assert sorted({row % 8 for row in list(TranslationSampler(made, 4, 8))[:4]}) != [0, 1, 2, 3], "any translations"


def test_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(TranslationSampler(keys(), 4, 8))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("skipped", [0, 3])
def test_through_accelerate(processes, skipped):
    """Each process gets whole groups in its own batches; an epoch is resumed where it was left."""
    made = keys(prompts=16)
    loaders, samplers = [], []
    for process in range(processes):
        sampler = TranslationSampler(made, 4, 8, 1, processes, seed=3)
        loader = DataLoader(range(len(made)), batch_size=8, sampler=sampler)
        loaders.append(prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=False))
        samplers.append(sampler)
    found = []
    for loader, sampler in zip(loaders, samplers):
        sampler.set_epoch(2)  # WindowTrainer's callback; accelerate does not reach it in the last of these cases
        loader = skip_first_batches(loader, skipped) if skipped else loader
        loader.set_epoch(2)  # Trainer
        found.append([batch.tolist() for batch in loader])
    for rows in itertools.chain.from_iterable(found):
        assert len({made[row] for row in rows}) <= 2
    whole = TranslationSampler(made, 4, 8, 1, processes, seed=3)
    whole.set_epoch(2)
    expected = cut(list(whole), 8)
    assert found == [expected[process::processes][skipped:] for process in range(processes)]


def test_keys_of_rows():
    chat = [{"role": "user", "content": "hello"}]
    rows = [
        {"instruction_en": "hello", "messages_en": None},
        {"instruction_en": "hello", "messages_en": chat},
        {"instruction_en": None, "messages_en": [*chat, {"role": "assistant", "content": "unread"}]},
        {"instruction_en": "  ", "messages_en": None},
        {"instruction_en": None, "messages_en": []},
        {"instruction_en": None, "messages_en": [{"role": "assistant", "content": "alone"}]},
    ]
    found = english_keys(rows)
    assert found[0] == "hello"
    assert found[1] == found[2] not in (None, "hello")
    assert found[3:] == [None] * 3
    assert english_keys([{"instruction": "hello"}]) == [None]
    assert english_keys(Dataset.from_list([{"instruction_en": row["instruction_en"]} for row in rows]))[0] == "hello"
    assert english_keys(Dataset.from_dict({"output": ["a", "b"]})) == [None, None]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"translations": 0}, ValueError, "translations: expected at least 1, got 0"),
        ({"translations": 1.5}, TypeError, "translations: expected an integer, got 1.5"),
        ({"batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
        ({"batches": -1}, ValueError, "batches: expected at least 1, got -1"),
        ({"processes": 0}, ValueError, "processes: expected at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"keys": []}, ValueError, "keys: expected one for each of at least 1 row, got none"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        TranslationSampler(**{"keys": keys(), "translations": 2, "batch_size": 4, **options})
