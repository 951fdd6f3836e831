"""Where rows connect, as places in the flattened tokens."""

import pytest
import torch

from cc_model.data.positions import Places, before_first_label, located, mark_skipped

CPU = torch.device("cpu")


@pytest.mark.parametrize("start", [0, 2])
def test_one_index_of_all_rows_is_the_index_of_each(start):
    one, each = Places(4, 3, 6, CPU), Places(torch.tensor([4, 4, 4]), 3, 6, CPU)
    assert torch.equal(one.flat(start), each.flat(start))
    assert one.first() == each.first() == 4
    assert one.skipped() is None
    assert not each.skipped().any()


def test_rows_whose_index_is_out_of_range_are_skipped_and_stay_in_their_rows():
    places = Places(torch.tensor([-1, 3, 6, 2]), 4, 6, CPU)
    assert places.skipped().tolist() == [True, False, True, False]
    assert places.flat().tolist() == [0, 9, 17, 20]
    assert places.flat(2).tolist() == [0, 5, 11, 12]
    assert places.first() == 2
    assert Places(torch.tensor([-1, 6]), 2, 6, CPU).first() == 5, "nobody connects: the last token runs again"


def test_located_agrees_with_places():
    index = torch.tensor([-1, 3, 6, 2])
    tokens, inside = located(index, 6)
    places = Places(index, 4, 6, CPU)
    assert torch.equal(tokens, places.flat())
    assert torch.equal(~inside, places.skipped())


def test_before_first_label():
    labels = torch.tensor([[-100, -100, 7, -100], [5, 6, 7, 8], [-100, -100, -100, -100], [-100, -100, -100, 0]])
    assert before_first_label(labels).tolist() == [1, -1, -1, 2]
    assert before_first_label(labels).dtype == torch.int64


def test_mark_skipped():
    rows = torch.tensor([4, 5])
    assert mark_skipped(rows, torch.tensor([True, False])).tolist() == [-1, 5]
    assert mark_skipped(rows, None) is rows
