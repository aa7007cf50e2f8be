"""Evaluation by parts: shards and their merging."""

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import Linear, toy_data, toy_net
from helpers import labelled_by, same_results
from torch import nn

from sparring import (
    FGSM,
    L2,
    PGD,
    Benign,
    Linf,
    Margin,
    OriginalModel,
    Square,
    TensorData,
    UserError,
    WhiteBox,
    evaluate,
)
from sparring.attacks import DDN
from sparring.core.types import pixels
from sparring.evaluation import Ensemble, MinimumNorm, rows_of_shard
from sparring.records import merge_evaluations

LINF = Linf(0.06)
NEAREST = MinimumNorm(L2(0.5), (DDN(5),))  # steps of FAB end on the boundary, where the last bit decides
CASCADE = Ensemble({"pgd": WhiteBox(PGD(LINF, 3, 0.01, patience=0)), "square": WhiteBox(Square(LINF, 50), Margin)})
PGD_3 = {"pgd": WhiteBox(PGD(LINF, 3, patience=0))}
ON_MODEL = {"backend": OriginalModel()}


# -- rows


@pytest.mark.parametrize(("count", "world"), [(10, 1), (10, 3), (10, 10), (3, 5), (0, 2)])
def test_every_row_is_in_one_shard_and_neighbours_are_in_different_ones(count, world):
    shards = [rows_of_shard(count, rank, world).tolist() for rank in range(world)]
    assert sorted(row for rows in shards for row in rows) == list(range(count))
    assert all(b - a == world for rows in shards for a, b in pairwise(rows))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(rows == sorted(rows) and rows[:1] in ([], [rank]) for rank, rows in enumerate(shards))


def test_a_shard_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="rank = 3 is no whole number from 0 to 2"):
        rows_of_shard(9, 3, 3)
    for shard, message in [
        ((0, 3), "the number of a shard = 0 is no whole number from 1 to 3"),
        ((4, 3), "the number of a shard = 4 is no whole number from 1 to 3"),
        ((1, 0), "the number of shards = 0 is no whole number from 1 on"),
        ("2/8", r"shard = '2/8': give a number and the number of all shards, as \(2, 8\)"),
        ((1, 61), "60 examples have no 61 shards: use at most 60"),
    ]:
        with pytest.raises(UserError, match=message):
            evaluate(toy_net(), toy_data(), PGD_3, shard=shard)


# -- merging


@pytest.fixture(scope="module")
def net():
    """In float64, in which batches of other sizes differ by less than an attack notices."""
    return toy_net().eval().double()


@pytest.fixture(scope="module")
def data(net):
    return labelled_by(net)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 7])
def test_the_shards_of_an_evaluation_make_what_one_process_makes(net, data, world):
    """Verdicts, margins, norms, distances, adversarial images, pictures and notes, with batches of any size."""
    adversaries = {"both": CASCADE, "nearest": NEAREST, **PGD_3}
    whole = evaluate(net, data, adversaries, batch_size=16, keep_images=True, **ON_MODEL)
    parts = [
        evaluate(net, data, adversaries, batch_size=5, keep_images=True, shard=(number, world), **ON_MODEL)
        for number in range(1, 1 + world)
    ]
    assert [len(part.label) for part in parts] == [len(rows_of_shard(60, rank, world)) for rank in range(world)]
    assert 0 < whole.table()["both"].correct < whole.table()["both/pgd"].correct < whole.table()["clean"].correct
    assert len(whole.hardest.label) == len(whole.examples.label) == 8
    assert any("Square, which needs no gradients, breaks" in note for note in whole.notes)
    same_results(merge_evaluations(parts[::-1]), whole)
    for part, rank in zip(parts, range(world), strict=True):
        assert part.index.tolist() == list(range(rank, 60, world))


def test_results_of_rows_travel_between_processes_and_merge_without_files(net, data):
    whole = evaluate(net, data, PGD_3, **ON_MODEL)
    parts = []
    for rank in range(3):
        rows = rows_of_shard(60, rank, 3)
        parts.append(pickle.dumps(evaluate(net, data.part(rows), PGD_3, index=rows, **ON_MODEL)))
    merged = merge_evaluations(pickle.loads(part) for part in parts)
    same_results(merged, whole)
    assert merged.paired(whole, "pgd").only_first == 0


def test_on_accelerated_copies_the_verdicts_are_those_of_one_process_too(data):
    net = toy_net().eval()
    whole = evaluate(net, data, PGD_3)
    assert 0 < whole.table()["pgd"].correct < whole.table()["clean"].correct
    merged = merge_evaluations([evaluate(net, data, PGD_3, shard=(number, 4)) for number in (1, 2, 3, 4)])
    assert np.array_equal(merged.robust["pgd"], whole.robust["pgd"])
    assert merged.settings == whole.settings


def some(number=1, of=2, model=None, adversaries=PGD_3, **options):
    return evaluate(model or Linear(), toy_data(20, 2), adversaries, shard=(number, of), **ON_MODEL, **options)


def rows(*numbers):
    index = torch.tensor(numbers)
    return evaluate(Linear(), toy_data(20, 2).part(index), PGD_3, index=index, **ON_MODEL)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (list, "no results were given to be merged"),
        (lambda: [some(1, 3)], "results of the shards 2/3, 3/3 are missing: evaluate these, and merge again"),
        (lambda: [some(8, 9)], "the shards 1/9, 2/9, 3/9, 4/9, 5/9 and 3 more are missing"),
        (lambda: [some(1), some(2), some(1)], "results of the shards 1/2 are there twice: give each once"),
        (lambda: [some(1, 2), some(2, 3)], "a shard 1/2 of 20 examples, a shard 2/3 of 20 examples: merge those"),
        (lambda: [some(1), rows(1)], "a shard 1/2 of 20 examples, no shard: merge those of all shards"),
        (lambda: [some(1), some(2, seed=1)], r"are of different evaluations \(seed: 0 -> 1\): evaluate all parts"),
        (lambda: [some(1), some(2, model=Linear(seed=1))], r"different evaluations \(model: "),
        (lambda: [some(1), some(2, adversaries={"pgd": WhiteBox(PGD(LINF, 4))})], "adversary pgd: .*steps=3.*steps=4"),
        (lambda: [some(1), some(2, adversaries={})], "adversary pgd: "),
        (lambda: [some(1), some(2, keep_images=True)], r"\(adversarial: "),
        (lambda: [some(1), replace(some(2), index=None)], "a result has no index of its examples"),
        (lambda: [rows(0, 1), rows(1, 2)], "the examples 1 are in more than one result"),
        (lambda: [rows(0, 1), rows(3, 5)], "the examples 2, 4 are in no result"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(parts, message):
    found = parts()
    with pytest.raises(UserError, match=message):
        merge_evaluations(found)


class Fragile(nn.Module):
    """Its logits are NaN for dark images, and for images that an attack has made bright."""

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        out = torch.stack([mean, 1 - mean], 1)
        return out.where(((mean > 0.1) & (mean < 0.9))[:, None], torch.nan)


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
def test_notes_that_count_examples_count_those_of_all_shards():
    x = torch.tensor([0.05, 0.85, 0.85, 0.6, 0.05, 0.05, 0.85, 0.6]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    data = TensorData(x, torch.zeros(8, dtype=torch.long), ("a", "b"))

    def brighten(model, x, y, rng):
        return x + 0.1

    attack = {"brighten": brighten, "none": WhiteBox(Benign())}
    whole = evaluate(Fragile(), data, attack, **ON_MODEL)
    parts = [evaluate(Fragile(), data, attack, shard=(number, 3), **ON_MODEL) for number in (1, 2, 3)]
    assert "3 of 8 clean images give NaN or infinite logits: they count as wrong" in whole.notes
    assert "3 examples count as broken because the model gives NaN or infinite logits under brighten" in whole.notes
    merged = merge_evaluations(parts)
    assert merged.notes[:2] == whole.notes[:2]
    assert sum("NaN or infinite logits" in note for note in merged.notes) == 2


def test_a_note_that_some_shards_have_says_on_how_many_examples():
    first = replace(some(1), notes=("of all", "of one"))
    second = replace(some(2), notes=("of all",))
    assert merge_evaluations([second, first]).notes == ("of all", "on 10 of 20 examples: of one")


def test_labels_decide_whether_images_are_the_same():
    data = TensorData(pixels(toy_data(20, 2).x), toy_data(20, 2).y, ("a", "b"))
    one = evaluate(Linear(), data, {}, **ON_MODEL)
    other = evaluate(Linear(), data.relabelled(1 - data.y), {}, **ON_MODEL)
    darker = evaluate(Linear(), TensorData(data.x * 0.999, data.y, data.classes), {}, **ON_MODEL)
    assert not (one.image_hash == other.image_hash).any() and len(set(one.image_hash.tolist())) > 15
    with pytest.raises(UserError, match="needs both models evaluated on the same images"):
        one.paired(darker, "clean")


def test_fgsm_of_an_own_class_is_the_same_in_every_process():
    """An address in a repr says nothing about an adversary."""

    class Mine:
        def __call__(self, model, x, y, rng):
            return WhiteBox(FGSM(LINF))(model, x, y, rng)

    data = toy_data(20, 2)
    parts = [evaluate(Linear(), data, {"mine": Mine()}, shard=(n, 2), **ON_MODEL) for n in (1, 2)]
    assert len(merge_evaluations(parts).label) == 20
