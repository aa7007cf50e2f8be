import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from functools import partial

import numpy as np
import pytest
import scipy.io
import torch
from conftest import toy_data
from PIL import Image

from sparring import UserError, make_rng
from sparring.data import (
    CIFAR10,
    CIFAR100,
    KMNIST,
    MNIST,
    NPZ,
    SVHN,
    Batches,
    Crop,
    Cutout,
    Digits,
    FashionMNIST,
    Flip,
    Grey,
    ImageFolder,
    Jitter,
    Subset,
    hold_out,
    load_test,
    source_of,
)
from sparring.data.files import Remote, locate
from sparring.data.formats import read_idx
from sparring.data.given import GivenData
from sparring.data.pictures import mixed_order

# -- files in the official formats, made here


def idx(array, compress=True):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    raw = head + array.astype(np.uint8).tobytes()
    return gzip.compress(raw) if compress else raw


def write_idx_folder(folder, n=30, compress=True):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
    end = ".gz" if compress else ""
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(idx(x, compress))
        (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(idx(y, compress))
    return x, y


def write_cifar(folder, dataset="cifar10", n=6, pack=True):
    """Binary records: label bytes, then the red, green and blue planes."""
    rng = np.random.default_rng(0)
    ten = dataset == "cifar10"
    top = "cifar-10-batches-bin" if ten else "cifar-100-binary"
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if ten else ["train.bin", "test.bin"]
    files, labels, pixels = {}, [], []
    for name in names:
        label = rng.integers(0, 10 if ten else 100, (n, 1 if ten else 2))
        image = rng.integers(0, 256, (n, 3072))
        files[name] = np.concatenate([label, image], 1).astype(np.uint8).tobytes()
        labels.append(label[:, -1])
        pixels.append(image.reshape(n, 3, 32, 32))
    if not ten:
        files["fine_label_names.txt"] = "\n".join(f"class{i}" for i in range(100)).encode()
    if pack:
        archive = "cifar-10-binary.tar.gz" if ten else "cifar-100-binary.tar.gz"
        with tarfile.open(folder / archive, "w:gz") as tar:
            for name, raw in files.items():
                info = tarfile.TarInfo(f"{top}/{name}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    else:
        (folder / top).mkdir()
        for name, raw in files.items():
            (folder / top / name).write_bytes(raw)
    return np.concatenate(pixels[:-1]), np.concatenate(labels[:-1]), pixels[-1], labels[-1]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("source", [MNIST, KMNIST, FashionMNIST])
def test_idx_files_are_read_gzipped_or_not(tmp_path, source, compress):
    x, y = write_idx_folder(tmp_path, compress=compress)
    train, test = source(str(tmp_path)).load()
    assert train.x.dtype == torch.uint8
    assert train.x.shape == (30, 1, 28, 28)
    assert np.array_equal(train.x[:, 0].numpy(), x)
    assert np.array_equal(test.y.numpy(), y)
    assert len(train.classes) == 10


@pytest.mark.parametrize("pack", [True, False])
def test_cifar10_is_read_from_the_binary_archive_or_its_folder(tmp_path, pack):
    x, y, x_test, y_test = write_cifar(tmp_path, pack=pack)
    train, test = CIFAR10(str(tmp_path)).load()
    assert np.array_equal(train.x.numpy(), x)
    assert np.array_equal(train.y.numpy(), y)
    assert np.array_equal(test.x.numpy(), x_test)
    assert np.array_equal(test.y.numpy(), y_test)
    assert train.classes[3] == "cat"


def test_cifar100_uses_the_fine_labels_and_their_names(tmp_path):
    _, y, *_ = write_cifar(tmp_path, "cifar100")
    train, _ = CIFAR100(str(tmp_path)).load()
    assert np.array_equal(train.y.numpy(), y)
    assert train.classes[7] == "class7"


def test_svhn_is_turned_around_and_its_label_10_is_the_digit_0(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 5)).astype(np.uint8)
    y = np.array([[10], [1], [9], [2], [10]], dtype=np.uint8)
    for part in ("train", "test"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": x, "y": y})
    train, _ = SVHN(str(tmp_path)).load()
    assert train.y.tolist() == [0, 1, 9, 2, 0]
    assert np.array_equal(train.x[3].numpy(), x[:, :, :, 3].transpose(2, 0, 1))


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_own_arrays_are_read_in_every_usual_layout(tmp_path, layout):
    x = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3)).astype(np.uint8)
    given = {"NHW": x[..., 0], "NHWC": x, "NCHW": x.transpose(0, 3, 1, 2)}[layout]
    np.savez(tmp_path / "a.npz", x_train=given, y_train=np.arange(8) % 4, x_test=given[:4], y_test=np.arange(4))
    train, test = NPZ(str(tmp_path / "a.npz")).load()
    wanted = x.transpose(0, 3, 1, 2)
    assert np.array_equal(train.x.numpy(), wanted[:, :1] if layout == "NHW" else wanted)
    assert len(train.classes) == len(test.classes) == 4


def test_image_folders_give_squares_and_test_pictures_in_a_mixed_order(tmp_path):
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 20), (100 * (i + 1), 0, 0)).save(tmp_path / part / name / "1.png")
            Image.new("L", (10, 10), 7).save(tmp_path / part / name / "2.png")
    train, test = ImageFolder(str(tmp_path), size=16).load()
    assert train.x.shape == (4, 3, 16, 16)
    assert train.classes == ("cat", "dog")
    order = mixed_order(4).tolist()
    assert train.y.tolist() == [0, 0, 1, 1] and test.y.tolist() == [[0, 0, 1, 1][row] for row in order]
    assert train.x[2, :, 8, 8].tolist() == [200, 0, 0]
    assert train.x[1, :, 8, 8].tolist() == [7, 7, 7]


def test_the_embedded_digits_are_there_without_any_file():
    train, test = Digits().load()
    assert (len(train), len(test), train.shape) == (1437, 360, (1, 8, 8))
    assert int(train.x.max()) == 255
    assert torch.bincount(test.y).min() >= 34


# -- broken, missing and absurd files


def refused(source, match):
    with pytest.raises(UserError, match=match):
        source.load()


@pytest.mark.parametrize("harm", ["cut", "flip", "short", "html", "empty"])
def test_a_broken_idx_file_is_named_with_what_to_do(tmp_path, harm):
    write_idx_folder(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(
        {
            "cut": raw[:middle],
            "flip": raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :],
            "short": gzip.compress(gzip.decompress(raw)[:-100]),
            "html": b"<html>not here any more</html>",
            "empty": b"",
        }[harm]
    )
    refused(MNIST(str(tmp_path)), r"train-images-idx3-ubyte\.gz cannot be read \(.*\): get it anew")


def test_a_cut_cifar_archive_is_named(tmp_path):
    write_cifar(tmp_path)
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:5000])
    refused(CIFAR10(str(tmp_path)), r"cifar-10-binary\.tar\.gz cannot be read")


def test_a_cifar_file_with_half_a_record_is_named(tmp_path):
    write_cifar(tmp_path, pack=False)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-7])
    refused(CIFAR10(str(tmp_path)), r"data_batch_2\.bin has 18431 bytes, no multiple of a record's 3073")
    path.unlink()
    refused(CIFAR10(str(tmp_path)), r"data_batch_2\.bin cannot be read \(No such file.*\): get it anew")


def test_broken_mat_npz_and_picture_files_are_named(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(50))
    refused(SVHN(str(tmp_path)), r"train_32x32\.mat cannot be read")
    (tmp_path / "train_32x32.mat").write_bytes(b"")
    refused(SVHN(str(tmp_path)), r"train_32x32\.mat cannot be read")
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 nothing")
    refused(NPZ(str(tmp_path / "a.npz")), r"a\.npz cannot be read")
    for part in ("train", "test"):
        (tmp_path / part / "x").mkdir(parents=True)
        (tmp_path / part / "x" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    refused(ImageFolder(str(tmp_path)), r"1\.png is no picture that can be read")
    Image.new("L", (40, 40), 7).save(tmp_path / "train" / "x" / "1.png")
    raw = (tmp_path / "train" / "x" / "1.png").read_bytes()
    (tmp_path / "train" / "x" / "1.png").write_bytes(raw.replace(b"IDAT", b"I\x00AT"))
    refused(ImageFolder(str(tmp_path)), r"1\.png is no picture that can be read")


def test_missing_files_are_named_with_where_they_were_looked_for(tmp_path):
    refused(MNIST(str(tmp_path)), rf"no train-images-idx3-ubyte\.gz in {tmp_path}")
    refused(NPZ(str(tmp_path / "b.npz")), r"b\.npz cannot be read \(No such file or directory\): name an \.npz file")
    refused(ImageFolder(str(tmp_path)), "there is no folder")


def save(path, x, y):
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return NPZ(str(path))


def test_absurd_arrays_are_refused_with_what_is_wrong(tmp_path):
    x, y = np.linspace(0.375, 0.5, 96).reshape(6, 4, 4), np.arange(6) % 3
    path = tmp_path / "a.npz"
    assert len(save(path, x, y).load()[0]) == 6
    refused(save(path, x * 4, y), r"span \[1.5, 2\], outside \[0, 1\].*let the model normalise")
    refused(save(path, x - 1, y), "outside")
    bad = x.copy()
    bad[4, 0, 0] = np.nan
    refused(save(path, bad, y), "NaN or infinite pixels, first in number 4")
    refused(save(path, x, y - 1), "labels span -1 to 1: number the classes 0, 1, 2")
    refused(save(path, x, np.zeros(6, int)), "1 class is nothing to classify")
    refused(save(path, x, y[:4]), "6 images, but 4 labels")
    refused(save(path, x[:, 0], y), r"shape \(6, 4\): wanted is \[N, channels, height, width\]")
    refused(save(path, x, y + 0.5), r"labels are float64 of shape \(6,\), wanted are class numbers")
    refused(save(path, x, np.array(list("abcabc"))), "labels are <U1")
    refused(save(path, np.zeros((6, 8, 8, 4)), y), r"images are \(6, 8, 8, 4\): wanted are 1 or 3 channels")
    np.savez(path, x_train=x, y_train=y)
    refused(NPZ(str(path)), "lacks x_test, y_test; it holds x_train, y_train")


def test_a_test_class_that_was_never_trained_is_refused(tmp_path):
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "c")):
        (tmp_path / part / name).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / part / name / "1.png")
    refused(ImageFolder(str(tmp_path)), "classes that the training set lacks: c")


# -- downloads, from a server on this machine


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()
        thread.join()


def test_what_is_nowhere_is_downloaded_once_into_the_cache(tmp_path, server, monkeypatch):
    folder, base = server
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path / "cache"))
    (folder / "a.gz").write_bytes(b"content")
    remote = Remote("a.gz", base, hashlib.md5(b"content").hexdigest())
    path = locate(remote, None, "some-data")
    assert path == tmp_path / "cache" / "some-data" / "a.gz"
    (folder / "a.gz").unlink()
    assert locate(remote, None, "some-data").read_bytes() == b"content"


def test_a_download_with_a_wrong_checksum_is_refused_and_not_kept(tmp_path, server, monkeypatch):
    folder, base = server
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path / "cache"))
    (folder / "a.gz").write_bytes(b"<html>login</html>")
    with pytest.raises(UserError, match=r"a\.gz could not be downloaded .*\$SPARRING_DATA"):
        locate(Remote("a.gz", base, "0" * 32), None, "d")
    assert not (tmp_path / "cache" / "d" / "a.gz").exists()


def test_without_a_network_the_user_hears_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"put it into .*or name its folder with --data.folder"):
        locate(Remote("a.gz", "http://127.0.0.1:9/", "0" * 32), None, "d")


def test_a_system_folder_is_found_before_the_network_is_asked(tmp_path):
    (tmp_path / "a.gz").write_bytes(b"x")
    remote = Remote("a.gz", "http://127.0.0.1:9/", "0" * 32)
    assert locate(remote, None, "d", [tmp_path]) == tmp_path / "a.gz"


def test_the_reader_understands_any_number_of_dimensions(tmp_path):
    for shape in ((5,), (2, 3), (2, 3, 4, 5)):
        array = np.arange(np.prod(shape)).reshape(shape) % 256
        (tmp_path / "a").write_bytes(idx(array, compress=False))
        assert np.array_equal(read_idx(tmp_path / "a"), array)


# -- batches


def test_an_epoch_hands_out_every_index_once_and_another_order_each_time():
    batches = Batches(toy_data(60), 20)
    first, second = (torch.cat([b.index for b in batches.rest_of_epoch(s)]) for s in (0, 3))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(60))
    assert not torch.equal(first, second)


def test_a_batch_belongs_together():
    data = toy_data(60)
    batch = next(iter(Batches(data, 20).rest_of_epoch(0)))
    assert torch.equal(batch.x, data.x[batch.index].float() / 255)
    assert torch.equal(batch.y, data.y[batch.index])


def test_an_epoch_can_be_entered_in_its_middle():
    batches = Batches(toy_data(60), 20)
    whole = [b.index for b in batches.rest_of_epoch(3)]
    rest = [b.index for b in batches.rest_of_epoch(4)]
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_what_is_left_over_waits_and_another_seed_is_another_order():
    batches = Batches(toy_data(50), 20)
    assert len(batches) == 2
    assert len(list(batches.rest_of_epoch(0))) == 2
    other = Batches(toy_data(50), 20, seed=1)
    one, two = (next(iter(b.rest_of_epoch(0))).index for b in (batches, other))
    assert not torch.equal(one, two)


def test_batches_larger_than_the_training_set_are_refused():
    with pytest.raises(UserError, match="batches of 128 do not go with 50 training images"):
        Batches(toy_data(50), 128)


def test_the_held_out_part_is_fixed_apart_and_of_the_size_asked_for():
    data = toy_data(100)
    train, held = hold_out(data, 0.1)
    again = hold_out(data, 0.1)[1]
    assert (len(train), len(held)) == (90, 10)
    assert torch.equal(held.x, again.x)
    together = torch.cat([train.x, held.x]).flatten(1).sum(1).sort().values
    assert torch.equal(together, data.x.flatten(1).sum(1).sort().values)
    for share in (0.001, 1.0):
        with pytest.raises(UserError, match="both need at least one"):
            hold_out(data, share)


# -- augmentation, against plain loops


def test_a_crop_is_a_window_of_the_padded_image():
    x = torch.rand(50, 2, 6, 5, generator=make_rng(0))
    out = Crop(2)(x, make_rng(1))
    seen = set()
    for image, cropped in zip(x, out, strict=True):
        wide = torch.nn.functional.pad(image, [2] * 4)
        places = [(r, c) for r in range(5) for c in range(5) if torch.equal(wide[:, r : r + 6, c : c + 5], cropped)]
        assert places
        seen.add(places[0])
    assert len(seen) > 10


def test_a_reflected_crop_shows_no_black_border():
    assert Crop(3, "reflect")(torch.ones(20, 1, 8, 8), make_rng(0)).min() == 1
    assert Crop(3)(torch.ones(20, 1, 8, 8), make_rng(0)).min() == 0


def test_a_flip_turns_half_of_the_images_as_a_whole():
    x = torch.rand(400, 3, 4, 4, generator=make_rng(0))
    out = Flip()(x, make_rng(1))
    same = (out == x).flatten(1).all(1)
    turned = (out == x.flip(3)).flatten(1).all(1)
    assert (same | turned).all()
    assert turned.float().mean() == pytest.approx(0.5, abs=0.1)


def test_cutout_blackens_a_square_cut_at_the_border():
    out = Cutout(4)(torch.ones(200, 3, 10, 10), make_rng(0))
    holes = (out == 0).flatten(1).sum(1) // 3
    assert holes.max() == 16
    assert holes.min() >= 4
    assert (out[:, :1] == out).all(), "all channels alike"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(-1), "padding = -1 is no whole number"),
        (lambda: Crop(2, "mirror"), "mode = 'mirror' is not one of constant, reflect"),
        (lambda: Crop(2, p=7), "p = 7 is no share of the images"),
        (lambda: Cutout(0), "length = 0 is no whole number"),
        (lambda: Jitter(contrast=-0.4), "strengths of changes are at least 0"),
        (lambda: Grey(-1.0), "p = -1 is no share of the images"),
        (lambda: Crop(8, "reflect")(torch.ones(2, 1, 8, 8), make_rng(0)), "images of 8x8 have no 8 pixels to mirror"),
    ],
)
def test_changes_that_make_no_sense_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("augment", [Crop(2), Flip(), Cutout(3)], ids=repr)
def test_augmentation_repeats_itself_from_a_seed_and_leaves_its_input_alone(augment):
    x = torch.rand(20, 1, 8, 8, generator=make_rng(0))
    kept = x.clone()
    assert torch.equal(augment(x, make_rng(3)), augment(x, make_rng(3)))
    assert not torch.equal(augment(x, make_rng(3)), augment(x, make_rng(4)))
    assert torch.equal(x, kept)


def test_few_images_are_the_first_ones():
    train, test = Digits().load()
    few, some = Subset(Digits(), 30, 20).load()
    assert torch.equal(few.x, train.x[:30])
    assert torch.equal(some.y, test.y[:20])
    assert len(Subset(Digits(), 30).load()[1]) == len(test)
    alone = Subset(GivenData.of(train, None), 30)
    assert [len(part) for part in alone.load()] == [30, 0], "a source without test images has a subset"
    with pytest.raises(UserError, match="9999 training images are asked for, and there are 1437"):
        Subset(Digits(), 9999).load()
    with pytest.raises(UserError, match="of a subset must be at least 1"):
        Subset(Digits(), 0)


def test_a_file_of_test_images_alone_takes_changes(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "test.npz", x_test=x, y_test=y)
    plain, inverted = (load_test(f"npz:{tmp_path / 'test.npz'}{change}") for change in ("", "+inverted"))
    assert torch.equal(inverted.x, 255 - plain.x) and len(plain.classes) == 3
    np.savez(tmp_path / "both.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    assert len(load_test(f"npz:{tmp_path / 'both.npz'}").classes) == 3, "those of the training images"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "folder needs the name of a data set: write folder:DIR"),
        ("npz", "npz needs the name of a data set: write npz:FILE"),
        ("digits:here", "digits come with scikit-learn, from no other place: write digits"),
    ],
)
def test_names_without_a_place_or_with_one_too_many_get_a_sentence(name, said):
    with pytest.raises(UserError, match=said):
        source_of(name)


def test_views_are_the_same_images_augmented_apart():
    data = Digits().load()[0]
    (batch, *_) = Batches(data, 16, (Flip(),), seed=0, views=2).rest_of_epoch(0)
    assert batch.x.shape[0] == 32
    first, second = batch.index.chunk(2)
    assert torch.equal(first, second)
    assert torch.equal(batch.y[:16], batch.y[16:])
    assert not torch.equal(batch.x[:16], batch.x[16:])
    with pytest.raises(UserError, match="every image at least once"):
        Batches(data, 16, views=0)
