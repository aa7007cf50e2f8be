"""Data in the forms that people have them: arrays, tensors, data sets, loaders."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, Subset, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

from sparring import TensorData, UserError
from sparring.core.types import pixels
from sparring.data import Digits
from sparring.data.dataset_images import DatasetImages
from sparring.data.given import GivenData, as_source, evaluation_data, labelled_data

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (20, 3, 8, 6), dtype=np.uint8)
Y = np.arange(20) % 4


class Pictures(Dataset):
    """Pictures as many data sets have them: a PIL image and a number, with a random transform."""

    def __init__(self, listed=True, chance=False, kind="pil"):
        self.chance, self.kind = chance, kind
        if listed:
            self.targets = Y.tolist()

    def __len__(self):
        return 20

    def __getitem__(self, i):
        array = BYTES[i].transpose(1, 2, 0)
        if self.chance:  # from all three generators that transforms draw from
            noise = random.random() + np.random.rand() + torch.rand(1).item()
            array = (array * (noise / 3)).astype(np.uint8)
        if self.kind == "dict":
            return {"image": Image.fromarray(array), "label": int(Y[i])}
        image = (
            Image.fromarray(array) if self.kind == "pil" else torch.from_numpy(array.transpose(2, 0, 1) / 255).float()
        )
        return image, int(Y[i])


def as_tensor(picture):
    return torch.from_numpy(np.array(picture).transpose(2, 0, 1) / 255).float()


class Listing(Pictures):
    """A data set whose attribute `labels` is not a list of its class numbers."""

    def __init__(self, labels):
        super().__init__(listed=False)
        self.labels = labels


FORMS = {
    "bytes": (BYTES, Y),
    "channels last": (BYTES.transpose(0, 2, 3, 1), Y),
    "floats": (BYTES / 255, Y),
    "tensors": (torch.from_numpy(BYTES), torch.from_numpy(Y)),
    "lists of labels": [BYTES, Y.tolist()],
    "tensor data set": TensorDataset(torch.from_numpy(BYTES), torch.from_numpy(Y)),
    "pictures": Pictures(),
    "pictures without a list of labels": Pictures(listed=False),
    "tensors of a data set": Pictures(kind="tensor"),
    "dicts": Pictures(kind="dict"),
    "loader": DataLoader(Pictures(kind="tensor"), batch_size=7, shuffle=True),
    "loader of tensors": DataLoader(TensorDataset(torch.from_numpy(BYTES), torch.from_numpy(Y)), batch_size=3),
    "names of classes": Listing([f"class {y}" for y in Y]),
    "one hot": Listing(np.eye(4)[Y]),
    "a vocabulary": Listing({f"class {y}": y for y in range(20)}),
    "other numbers": Listing([3] * 20),
    "a number": Listing(4),
    "subsets": ConcatDataset([Subset(Pictures(), range(8)), Subset(Pictures(), range(8, 20))]),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_give_the_same_images_and_labels(form):
    found = labelled_data(FORMS[form])
    assert (len(found), found.shape, found.classes) == (20, (3, 8, 6), ("0", "1", "2", "3"))
    assert torch.equal(found.y, torch.from_numpy(Y))
    whole = found[:]
    assert isinstance(whole, TensorData)
    assert torch.allclose(pixels(whole.x), torch.from_numpy(BYTES) / 255, atol=1e-6)
    rows = torch.tensor([5, 0, 17])
    assert torch.allclose(pixels(found[rows].x), torch.from_numpy(BYTES[rows]) / 255, atol=1e-6)
    part = found.part(torch.tensor([3, 4]))
    assert torch.allclose(pixels(part[:].x), torch.from_numpy(BYTES[3:5]) / 255, atol=1e-6)
    for data, index in found.read([torch.tensor([1, 9]), torch.tensor([2])], seed=0):
        assert torch.allclose(pixels(data.x), torch.from_numpy(BYTES)[index] / 255, atol=1e-6)
        assert torch.equal(data.y, torch.from_numpy(Y)[index])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_the_chance_of_a_transform_depends_on_the_seed_the_item_and_the_view_alone(workers):
    found = labelled_data(DataLoader(Pictures(chance=True, kind="tensor"), num_workers=workers))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    (a, _), (b, _) = found.read([torch.tensor([1, 9, 1]), torch.tensor([9, 1])], seed=3)
    (c, _), (d, _) = found.read([torch.tensor([9]), torch.tensor([1, 9])], seed=3)
    assert torch.equal(a.x[1], b.x[0]) and torch.equal(a.x[1], c.x[0]) and torch.equal(d.x[1], c.x[0])
    assert not torch.equal(a.x[0], a.x[2]), "two views of an image"
    ((other, _),) = found.read([torch.tensor([9])], seed=4)
    assert not torch.equal(other.x[0], c.x[0])
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2]), "training draws as if nothing had been read"


def test_a_collation_of_ones_own_is_kept_unless_it_changes_labels():
    def brighter(items):
        return torch.stack([image for image, _ in items]) / 2 + 0.5, [label for _, label in items]

    found = labelled_data(DataLoader(Pictures(kind="tensor"), collate_fn=brighter))
    assert torch.allclose(found[:].x, torch.from_numpy(BYTES) / 510 + 0.5, atol=1e-6)

    def of_dicts(items):
        return {"image": torch.stack([brighter([(as_tensor(item["image"]), 0)])[0][0] for item in items])} | {
            "label": torch.tensor([item["label"] for item in items])
        }

    found = labelled_data(DataLoader(Pictures(kind="dict"), collate_fn=of_dicts))
    assert torch.allclose(found[:].x, torch.from_numpy(BYTES) / 510 + 0.5, atol=1e-6), "it gets what the set gives"
    with pytest.raises(UserError, match=r"collate_fn gives .*: wanted are images \[B, C, H, W\] and labels"):
        labelled_data(DataLoader(Pictures(), collate_fn=lambda items: [image for image, _ in items]))[:]
    mixed = labelled_data(Pictures(kind="tensor"))
    mixed = DatasetImages(
        mixed.dataset,
        mixed.rows,
        mixed.y,
        mixed.classes,
        mixed.shape,
        collate=lambda items: (torch.stack([image for image, _ in items]), torch.zeros(2)),
    )
    with pytest.raises(UserError, match="collate_fn changes the labels"):
        next(mixed.read([torch.tensor([1, 2])], seed=0))


class EveryThird(Sampler):
    def __iter__(self):
        yield [0, 3, 6]


class Stream(IterableDataset):
    def __iter__(self):
        yield from FORMS["pictures"]


class Unlabelled(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        return BYTES[i]


class Soft(Unlabelled):
    def __getitem__(self, i):
        return BYTES[i], torch.rand(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (BYTES, r"data is a ndarray: give \(images, labels\)"),
        ((BYTES, Y / 2), "labels are float64"),
        ((BYTES, Y[:5]), "20 images, but 5 labels"),
        ((BYTES, -Y), "labels span -3 to 0"),
        ((BYTES / 25.5, Y), r"outside \[0, 1\]"),
        ((BYTES / 255 - 0.5, Y), r"outside \[0, 1\]"),
        ((BYTES[:, 0, 0], Y), r"images have shape \(20, 6\)"),
        ((np.zeros((20, 5, 8, 8)), Y), "1 or 3 channels"),
        (DataLoader(Stream()), "iterable data set, whose examples have no numbers"),
        (DataLoader(Pictures(), sampler=Weighted([1.0] * 20, 20)), "a WeightedRandomSampler, which would not be used"),
        (
            DataLoader(Pictures(), batch_sampler=EveryThird()),
            "with a batch sampler, EveryThird, which would not be used",
        ),
        (Unlabelled(), "an item of the data set is"),
        (Soft(), "a label of the data set is tensor"),
        ([], "data is a list"),
        (7, "data is a int"),
        (Subset(Pictures(), []), "data has no examples"),
    ],
)
def test_data_that_cannot_be_used_get_a_sentence(data, message):
    with pytest.raises(UserError, match=message):
        labelled_data(data)


def test_a_source_comes_from_a_pair_a_name_or_a_single_set():
    train, test = as_source(((BYTES, Y), Pictures())).load()
    assert (len(train), len(test), test.classes) == (20, 20, ("0", "1", "2", "3"))
    assert as_source("digits") == Digits() == as_source(Digits())
    alone = as_source((BYTES, Y), classes=["a", "b", "c", "d"])
    train, test = alone.load()
    assert (train.classes, len(train), len(test)) == (("a", "b", "c", "d"), 20, 0)
    with pytest.raises(UserError, match="the test data have 4 classes, the training data 2"):
        as_source(((BYTES, Y % 2), (BYTES, Y)))


class Named(Pictures):
    def __init__(self, classes):
        super().__init__()
        self.classes = classes


def test_labels_of_test_data_follow_the_names_of_their_classes():
    train = Named(["ant", "bee", "cat", "dog"])
    other = Named(["dog", "cat", "bee", "ant"])
    assert as_source((train, other)).load()[1].y.tolist() == (3 - Y).tolist()
    few = Subset(Named(["bee", "dog"]), [i for i in range(20) if Y[i] < 2])
    test = as_source((train, few)).load()[1]
    assert set(test.y.tolist()) == {1, 3} and test.classes == ("ant", "bee", "cat", "dog")
    assert as_source((train, (BYTES, Y))).load()[1].y.tolist() == Y.tolist(), "numbers stay"
    assert as_source((Pictures(), other)).load()[1].y.tolist() == Y.tolist()
    with pytest.raises(UserError, match=r"the test data have the class 'cow', which the training data lack: .*ant"):
        as_source((train, Named(["ant", "bee", "cow", "dog"])))


def test_the_test_part_of_a_pair_is_evaluated_with_the_labels_that_training_gives_it():
    train, other = Named(["ant", "bee", "cat", "dog"]), Named(["dog", "cat", "bee", "ant"])
    assert evaluation_data((train, other), "data").y.tolist() == as_source((train, other)).load()[1].y.tolist()
    assert evaluation_data((train, (BYTES, Y)), "data").y.tolist() == Y.tolist(), "numbers stay"
    assert evaluation_data(((BYTES, Y % 2), (BYTES, Y)), "data").y.tolist() == Y.tolist()
    assert evaluation_data((None, other), "data").y.tolist() == Y.tolist(), "the training data are not read"
    with pytest.raises(UserError, match="the test data have the class 'cow', which the training data lack"):
        evaluation_data((train, Named(["ant", "bee", "cow", "dog"])), "data")


def test_a_list_of_two_batches_is_not_taken_for_training_and_test_data():
    batches = [(BYTES[:10], Y[:10]), [BYTES[10:], Y[10:]]]
    for take in (as_source, lambda data: evaluation_data(data, "data")):
        with pytest.raises(UserError, match="a list of two batches is no data set: pass the DataLoader"):
            take(batches)
        take(tuple(batches))


class Changing(Pictures):
    """A data set of which one item has another label than it lists."""

    def __init__(self, change, declared=False):
        super().__init__()
        self.change = change
        if declared:
            self.target_transform = change

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, self.change(label) if i == 11 else label


def test_an_item_of_another_label_than_is_listed_is_refused_when_it_is_read():
    listed = labelled_data(Changing(lambda y: (y + 1) % 4))  # only a few items are looked at before
    with pytest.raises(
        UserError, match="item 11 of the data set has the label 0, and had or was listed with the label 3"
    ):
        listed[torch.tensor([2, 4, 11])]
    of_items = labelled_data(Changing(lambda y: (y + 1) % 4, declared=True))
    assert of_items[:].y.tolist() == [*Y[:11].tolist(), 0, *Y[12:].tolist()]
    noisy = of_items.relabelled(1 - of_items.y.clamp(0, 1))
    assert set(noisy[:].y.tolist()) == {0, 1}, "labels that were changed here are kept"


def test_images_of_different_sizes_get_a_sentence():
    class Sizes(Pictures):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image.resize((6, 9)) if i == 11 else image, label

    with pytest.raises(UserError, match="differ in size: item 11 is 3x9x6, and item 9 is 3x8x6: add a transform"):
        labelled_data(Sizes())[9:13]


def test_pictures_with_a_palette_have_their_colours():
    class Coloured(Pictures):
        def __getitem__(self, i):
            picture, label = super().__getitem__(i)
            return picture.convert("P", palette=Image.Palette.ADAPTIVE), label

    data = labelled_data(Coloured())
    wanted = labelled_data(Pictures())
    assert data.shape == wanted.shape == (3, *BYTES.shape[2:])
    assert (data[:].x.float() - wanted[:].x.float()).abs().mean() < 3


def test_given_data_are_known_again_by_their_content():
    one, same = as_source((BYTES, Y)), as_source((BYTES.copy(), torch.from_numpy(Y)))
    assert one == same and one.kind == "20 images 3x8x6"
    changed = BYTES.copy()
    changed[3, 0, 0, 0] ^= 1
    assert as_source((changed, Y)) != one
    with pytest.raises(UserError, match=r"handed to sparring.fit as objects .20 images 3x8x6.*hand them over again"):
        GivenData(one.kind, one.fingerprint).load()
