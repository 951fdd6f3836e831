"""ParallelCollator's `share_pivots` and `loss_only`, and batches that something cuts: never a wrong answer."""

from __future__ import annotations

import itertools

import cut_batches
import pytest
import torch
from accelerate.utils.operations import concatenate, slice_tensors
from cut_batches import answer, collated, rows_of
from model_pairs import assert_same_gradients, gradients, gumbel, pair
from shared_pivots import loss_rows_of
from word_tokenizers import ROW, SHORT, make_tokenizer

from cc_model import ParallelCollator
from cc_model.data.stacking import loss_rows

BOTH = {"share_pivots": True, "loss_only": True}


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_prompt_once(side):
    tokenizer = make_tokenizer("llama3")
    tokenizer.padding_side = side
    rows = [
        {**ROW, "instruction_en": english} for english in ("one two", "", "three", "one two", "three four", "three")
    ]
    plain = ParallelCollator(tokenizer)(rows)
    shared = ParallelCollator(tokenizer, share_pivots=True)(rows)
    assert set(shared) == {*plain, "pivot_row", "batch_shape"}
    assert shared["pivot_row"].tolist() == [0, -1, 1, 0, 2, 1], "in the order of their first rows"
    read = torch.tensor([0, 2, 4])
    for name in ("pivot_input_ids", "pivot_attention_mask", "pivot_index"):
        assert torch.equal(shared[name], plain[name][read]), name
    assert all(torch.equal(shared[name], plain[name]) for name in plain if not name.startswith("pivot"))
    assert shared["batch_shape"].shape == (6, 6, 3, 0, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_no_prompt_at_all(packed):
    shared = ParallelCollator(make_tokenizer("plain"), share_pivots=True, packed=packed)([SHORT, SHORT])
    assert shared["pivot_input_ids"].shape == (1, 1)
    assert shared["pivot_attention_mask"].tolist() == [[0]]
    assert (shared["pivot_index"].tolist(), shared["pivot_row"].tolist()) == ([-1], [-1, -1])
    assert shared["batch_shape"].shape == (1 if packed else 2, 2, 1, 0, 0)


def test_prompts_are_shared_too():
    collator = ParallelCollator(make_tokenizer("llama3"), **BOTH)
    made = collator.prompts([ROW, SHORT, ROW])
    assert made["pivot_row"].tolist() == [0, -1, 0]
    assert made["pivot_input_ids"].shape[0] == 1
    assert "loss_rows" not in made
    assert "pivot_row" not in collator.prompts([ROW], pivot=False)
    _, model = pair(vocab_size=len(collator.tokenizer))
    alone = ParallelCollator(collator.tokenizer).prompts([ROW, SHORT, ROW])
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(model.generate(**made, **options), model.generate(**alone, **options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("packed", [False, True])
def test_names_the_labelled_tokens(side, packed):
    tokenizer = make_tokenizer("llama3")
    tokenizer.padding_side = side
    made = ParallelCollator(tokenizer, loss_only=True, packed=packed)([ROW, SHORT, ROW])
    rows = made["loss_rows"]
    assert torch.equal(rows[rows >= 0], loss_rows_of(made["labels"]))
    assert len(rows) % 8 == 0
    assert (rows[(rows >= 0).sum() :] == -1).all(), "padding comes last"
    assert made["batch_shape"].shape[3] == len(rows)


def test_few_shapes_occur():
    """K is at most a sixteenth above the number of labels, beyond the first 128, and takes few values."""
    found = {}
    for labelled in range(0, 3000, 7):
        labels = torch.full((1, 3001), -100)
        labels[0, 1 : labelled + 1] = 5
        found[labelled] = len(loss_rows(labels))
    assert all(count >= labelled for labelled, count in found.items())
    assert all(count <= max(labelled + 8, labelled * 17 / 16 + 1) for labelled, count in found.items())
    assert len(set(found.values())) < 90
    assert found[0] == 8


@pytest.mark.parametrize("options", [{"share_pivots": True}, {"loss_only": True}, BOTH])
@pytest.mark.parametrize("other", [{}, {"packed": True}, {"position": "published"}, {"pad_to_multiple_of": 8}])
@pytest.mark.parametrize("side", ["left", "right"])
def test_trains_the_same(options, other, side):
    tokenizer = make_tokenizer("llama3")
    tokenizer.padding_side = side
    rows = rows_of([0, 1, 0, None, 1])
    _, model = pair(vocab_size=len(tokenizer))
    found = []
    for given in ({}, options):
        model.train().zero_grad()
        output = model(**ParallelCollator(tokenizer, **other, **given)(rows), gumbel_noise=gumbel(5))
        output.loss.backward()
        found.append((output, gradients(model)))
    torch.testing.assert_close(found[1][0].loss, found[0][0].loss, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[1][0].decision_weights, found[0][0].decision_weights)
    assert_same_gradients(found[1][1], found[0][1])


def test_in_a_dataloader_worker():
    """An empty tensor goes through shared memory and keeps its shape."""
    collator = ParallelCollator(make_tokenizer("llama3"), **BOTH)
    loader = torch.utils.data.DataLoader(rows_of([0, 0, 1, 1]), batch_size=4, collate_fn=collator, num_workers=1)
    (made,) = loader
    assert made["batch_shape"].shape == collator(rows_of([0, 0, 1, 1]))["batch_shape"].shape


READERS = [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 1], [None, None, 0, 0], [None] * 4, [0] * 8, [0, 1, 0, 1, 2, 2, 3, 4]]


def parallel(made, parts):
    """`nn.DataParallel`'s scatter: every tensor in chunks, and as many replicas as the shortest list has."""
    chunks = {name: value.chunk(parts) for name, value in made.items()}
    count = min(map(len, chunks.values()))
    return [{name: pieces[at] for name, pieces in chunks.items()} for at in range(count)]


def sliced(made, parts):
    """accelerate's split of a batch for `parts` processes (`DataLoaderDispatcher`)."""
    size = made["input_ids"].shape[0] // parts
    return [slice_tensors(made, slice(part * size, (part + 1) * size)) for part in range(parts)]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{"share_pivots": True}, {"loss_only": True}, BOTH])
@pytest.mark.parametrize("cut", [parallel, sliced])
def test_a_cut_batch_raises_or_is_right(cut, options, packed):
    """Whatever is cut how often: an answer is that of the same rows in a batch of their own, or there is none."""
    raised = 0
    for readers, parts in itertools.product(READERS, (2, 3, 4)):
        shared = collated(readers, packed=packed, **options)
        whole = collated(readers, packed=packed)
        pieces, expected = cut(shared, parts), cut(whole, parts)
        for piece, rows in zip(pieces, expected):
            found, message = answer(piece)
            raised += found is None
            if found is None:
                assert cut_batches.REMEDY in message or packed, message
            else:
                torch.testing.assert_close(found, answer(rows)[0], rtol=0, atol=1e-5)
        # A scatter that gives fewer pieces leaves rows out: then the first of them must raise.
        if len(pieces) < len(expected):
            assert answer(pieces[0])[0] is None
    assert raised > 10


@pytest.mark.parametrize("options", [{"share_pivots": True}, {"loss_only": True}, BOTH])
def test_batches_put_together_and_cut_again(options):
    """`dispatch_batches` concatenates one batch per process before it cuts."""
    answers = {"right": 0, "raised": 0, "not joined": 0}
    for one, other in itertools.product(READERS, READERS):
        if len(one) != len(other):
            continue
        made = [collated(readers, **options) for readers in (one, other)]
        try:
            joined = concatenate(made)
        except RuntimeError:
            answers["not joined"] += 1  # accelerate says so, too
            continue
        for piece, readers in zip(sliced(joined, 2), (one, other)):
            found, message = answer(piece)
            answers["right" if found is not None else "raised"] += 1
            if found is None:
                assert cut_batches.REMEDY in message
            else:
                torch.testing.assert_close(found, answer(collated(readers))[0], rtol=0, atol=1e-5)
        assert answer(joined)[0] is None, "two batches in one, with indices into each"
    assert answers["raised"] > 10
    assert bool(answers["right"]) == ("loss_only" not in options), "where each row has a pivot of its own, as many as B"


def test_generate_and_evaluation_see_a_cut():
    made = collated([0, 0, 1, 1], share_pivots=True)
    _, model = cut_batches.models()
    piece = slice_tensors(made, slice(0, 2))
    with pytest.raises(ValueError, match=cut_batches.REMEDY):
        model.eval()(**{**piece, "pivot_input_ids": piece["pivot_input_ids"][:1]})
    collator = ParallelCollator(make_tokenizer("llama3"), share_pivots=True)
    prompts = collator.prompts(rows_of([0, 1, 2, 2]))
    with pytest.raises(ValueError, match=cut_batches.REMEDY):
        model.generate(**slice_tensors(prompts, slice(0, 2)), max_new_tokens=1)


def test_a_batch_shape_of_other_makers():
    _, model = cut_batches.models()
    made = collated([0, 0])
    for wrong in (torch.empty(2, 2, 1, 0), [2, 2, 1, 0, 0]):
        with pytest.raises(ValueError, match=r"batch_shape: expected what ParallelCollator gives, \(B, N, P, K, 0\)"):
            model(**made, batch_shape=wrong)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("readers", [[0, 0, 0, 0] * 4, [0, 1, 0, None] * 4, [0, 1, 2, 3] * 4])
def test_accelerate_dispatches(two_processes, split, readers):
    """The loader itself, between two processes: each batch is right, or raises in the loader or in the forward."""
    ranks = two_processes.run(cut_batches.dispatched, readers, split)
    messages = [message for found in ranks for shared, plain, message in found if shared is None]
    for found in ranks:
        for shared, plain, _ in found:
            assert shared is None or shared == pytest.approx(plain, abs=1e-5)
    if len(set(readers)) != 4 or split:
        assert messages
    assert all(cut_batches.REMEDY in message or "different size" in message for message in messages)


def test_split_batches_without_dispatch_needs_no_cut(two_processes):
    """Rows are split before they are collated, so both processes get whole batches of their own."""
    ranks = two_processes.run(cut_batches.sharded, [0, 1, 0, None] * 4)
    for found in ranks:
        assert len(found) == 2
        for shared, plain, message in found:
            assert message is None
            assert shared == pytest.approx(plain, abs=1e-5)
