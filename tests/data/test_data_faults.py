"""Files that are broken, hostile or absurd: each is read, or refused by one sentence."""

import contextlib
import gzip
import io
import os
import random
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import EpsImagePlugin, Image

from sparring import UserError
from sparring.data import CIFAR10, CIFAR100, MNIST, NPZ, SVHN, ImageFolder, load_test, source_of
from sparring.data.files import Remote, locate

X = np.random.default_rng(0).integers(0, 256, (6, 4, 4)).astype(np.uint8)
Y = np.arange(6) % 3


# -- arrays of one's own


def npz(folder, **changed):
    arrays = {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y} | changed
    np.savez(folder / "a.npz", **arrays)
    return NPZ(str(folder / "a.npz"))


def labels(*numbers, dtype=np.int64):
    return {"y_train": np.array(numbers, dtype)}


def npy_that_promises(shape):
    raw = io.BytesIO()
    np.lib.format.write_array_header_1_0(raw, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return raw.getvalue()


def absurd_header(folder):
    source = npz(folder)
    with zipfile.ZipFile(source.path, "a") as archive:
        archive.writestr("more.npy", npy_that_promises((10**15,)))
    return source


def no_array(folder):
    source = npz(folder)
    with zipfile.ZipFile(source.path, "a") as archive:
        archive.writestr("more.npy", b"words")
    return source


def bomb(folder, monkeypatch):
    source = npz(folder)
    with zipfile.ZipFile(source.path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("more.npy", bytes(10**7))
    monkeypatch.setattr("sparring.core.reading.memory_of_machine", lambda: 1e6)
    return source


ARRAYS = [
    ("labels of 3 * 10**9", labels(0, 1, 2, 0, 1, 3 * 10**9), r"a\.npz, train: labels span 0 to 3000000000: number"),
    ("labels beyond 2**63", labels(0, 1, 2, 0, 1, 2**64 - 1, dtype=np.uint64), "labels span 0 to 18446744073709551615"),
    ("one label of a million", labels(0, 1, 2, 0, 1, 10**6), "labels span 0 to 1000000: .*, at most 65,536 of them"),
    ("negative labels", labels(0, 1, 2, 0, 1, -1), "labels span -1 to 2: number the classes 0, 1, 2"),
    ("gaps", labels(0, 1, 2, 0, 1, 60_000), "60000, but 59,997 of these 60,001 classes have no training image: num"),
    ("a class to test on alone", {"y_test": Y + 1}, "labels reach 3, but 1 of these 4 classes have no training image"),
    ("labels in a table", {"y_train": Y[:, None]}, r"labels are int64 of shape \(6, 1\), wanted are class numbers"),
    ("labels that are one number", {"y_train": np.array(3)}, r"labels are int64 of shape \(\), wanted are class"),
    ("bools as labels", {"y_train": Y > 1}, r"labels are bool of shape \(6,\), wanted are class numbers"),
    ("complex images", {"x_train": X / 255 + 1j}, "images are complex128, wanted are bytes, or floats"),
    ("words as images", {"x_train": X.astype(str)}, "images are <U3, wanted are bytes, or floats"),
    ("dates as images", {"x_train": X.astype("M8[s]")}, r"images are datetime64\[s\], wanted are bytes"),
    ("images of floats that overflow", {"x_train": X * 1e300}, "hold NaN or infinite pixels, first in number 0"),
    ("images of height 0", {"x_train": X[:, :0]}, r"images have shape \(6, 1, 0, 4\): wanted is .*, none of them 0"),
    ("no images", {"x_test": X[:0], "y_test": Y[:0]}, r"test images have shape \(0, 1, 4, 4\): wanted is"),
    ("black images", {"x_train": X * 0}, "all 6 training images are equal, nothing can be learned from them"),
    ("images of one number", {"x_train": X[:, 0, 0]}, r"a\.npz, train images have shape \(6,\): wanted is \[N, chan"),
    ("objects", {"x_train": np.array([{}, []], object)}, r"a\.npz cannot be read \(Object arrays .*\): name an"),
]


@pytest.mark.parametrize(("wrong", "changed", "sentence"), ARRAYS, ids=[case[0] for case in ARRAYS])
def test_absurd_arrays_of_ones_own_are_refused(tmp_path, wrong, changed, sentence):
    with pytest.raises(UserError, match=sentence):
        npz(tmp_path, **changed).load()


def test_a_test_set_need_not_hold_all_classes_but_may_not_promise_billions(tmp_path):
    np.savez(tmp_path / "t.npz", x=X, y=Y * 1000)
    assert len(load_test(f"npz:{tmp_path / 't.npz'}").classes) == 2001
    np.savez(tmp_path / "t.npz", x=X, y=Y * 1_500_000_000)
    with pytest.raises(UserError, match=r"t\.npz: labels span 0 to 3000000000: number the classes"):
        load_test(f"npz:{tmp_path / 't.npz'}")
    np.savez(tmp_path / "t.npz", x=X * 0, y=Y)
    assert len(load_test(f"npz:{tmp_path / 't.npz'}")) == 6, "black images can be tested on"


def test_an_archive_with_more_than_arrays_or_than_there_is_memory_is_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"a\.npz cannot be read \(.*\): name an \.npz file"):
        absurd_header(tmp_path).load()
    with pytest.raises(UserError, match=r"a\.npz cannot be read \(more is no array: write it with numpy"):
        no_array(tmp_path).load()
    with pytest.raises(UserError, match=r"it would unpack to .* GiB, more than this machine has memory"):
        bomb(tmp_path, monkeypatch).load()


# -- official formats


def idx(shape, content=b""):
    return bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + content


def mnist(folder, images, end=".gz"):
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte{end}").write_bytes(gzip.compress(images) if end else images)
        labels = idx((6,), bytes([0, 1, 2] * 2))
        (folder / f"{part}-labels-idx1-ubyte{end}").write_bytes(gzip.compress(labels) if end else labels)
    return MNIST(str(folder))


def cifar100(folder, names):
    top = folder / "cifar-100-binary"
    top.mkdir()
    (top / "fine_label_names.txt").write_bytes(names)
    return CIFAR100(str(folder))


def svhn(folder, **held):
    for part in ("train", "test"):
        scipy.io.savemat(folder / f"{part}_32x32.mat", held, do_compression=True)
    return SVHN(str(folder))


def cifar10(folder, top="cifar-10-batches-bin"):
    raw = {f"data_batch_{i}.bin": bytes([1, i]) + bytes(3071) for i in range(1, 6)}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in (raw | {"test_batch.bin": raw["data_batch_1.bin"]}).items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return CIFAR10(str(folder))


def cifar_of_a_folder(folder):
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    return CIFAR10(str(folder))


BYTES = X.tobytes()
OFFICIAL = [
    ("a gzip bomb", lambda f: mnist(f, idx((6, 4, 4), bytes(10**7))), "it unpacks to more than 112 bytes"),
    ("absurd shapes", lambda f: mnist(f, idx((2**31,) * 3)), r"header \(2147483648, .*\) promises more than"),
    ("absurd shapes, unpacked", lambda f: mnist(f, idx((2**31,) * 3), ""), "promises more than 536,870,912 bytes"),
    ("images of height 0", lambda f: mnist(f, idx((6, 0, 4))), r"have shape \(6, 1, 0, 4\): wanted is"),
    ("black images", lambda f: mnist(f, idx((6, 4, 4), bytes(96))), "all 6 training images are equal"),
    ("names that are no text", lambda f: cifar100(f, b"\xff\xfe"), r"cannot be read \(.*utf-8.*\): get it anew"),
    ("a folder in an archive", cifar_of_a_folder, r"data_batch_1\.bin is no file of 1 to 536,870,912 bytes"),
    ("no images in a .mat", lambda f: svhn(f, y=Y), "wanted are X .32, 32, 3, N. and y .N, 1."),
    ("other images in a .mat", lambda f: svhn(f, X=X, y=X), r"its byte arrays are \{'X': \(6, 4, 4\), 'y': "),
    ("a long folder, idx", lambda f: MNIST("x" * 300), r"there is no train-images-idx3-ubyte\.gz in xxx"),
    ("a long folder, archive", lambda f: CIFAR10("x" * 300), r"there is no cifar-10-binary\.tar\.gz in xxx"),
    ("a long name of a file", lambda f: NPZ("x" * 300), "cannot be read .File name too long.: name an"),
    ("billions of classes", lambda f: source_of("digits+classes=0-99999999999"), "classes are numbers, as"),
]


@pytest.mark.parametrize(("wrong", "make", "sentence"), OFFICIAL, ids=[case[0] for case in OFFICIAL])
def test_absurd_files_in_official_formats_are_refused(tmp_path, wrong, make, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        make(tmp_path).load()
    assert "\n" not in str(error.value)


def test_what_was_downloaded_is_checked_each_time_and_what_a_user_names_is_not(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARRING_DATA", str(tmp_path))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.gz").write_bytes(b"content")
    content = Remote("a.gz", "http://127.0.0.1:9/", "9a0364b9e99bb480dd25e1f0284c8555")
    assert locate(content, None, "d").read_bytes() == b"content"
    (tmp_path / "d" / "a.gz").write_bytes(b"contend")
    with pytest.raises(UserError, match=r"a\.gz cannot be read .*MD5 sum is .*, not 9a03.*\): delete it, and it is"):
        locate(content, None, "d")
    assert locate(content, str(tmp_path / "d"), "d").read_bytes() == b"contend"


# -- pictures


@pytest.fixture
def folder(tmp_path):
    """Two classes, a picture each."""
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("L", (9, 8), 50 + 100 * number).save(tmp_path / part / name / "1.png")
    return tmp_path


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(never run) print
%%EOF
"""


def test_postscript_that_is_called_a_picture_never_reaches_ghostscript(folder, monkeypatch):
    reached = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: reached.append(args))
    (folder / "train" / "cat" / "x.png").write_bytes(EPS)
    with pytest.raises(UserError, match=r"x\.png is no picture that can be read \(it is none of JPEG, PNG, .*\)"):
        ImageFolder(str(folder)).load()
    assert not reached


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "gif", "tiff", "webp", "ppm"])
def test_the_usual_formats_are_read_whatever_they_are_called(folder, ending):
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "train" / "cat" / f"2.{ending}")
    (folder / "train" / "cat" / f"2.{ending}").rename(folder / "train" / "cat" / "2.picture")
    assert len(ImageFolder(str(folder), size=8).load()[0]) == 3


def link_to_itself(folder):
    (folder / "train" / "cat" / "loop.png").symlink_to("loop.png")


def link_to_nothing(folder):
    (folder / "train" / "cat" / "gone.png").symlink_to("nowhere.png")


def pipe(folder):
    os.mkfifo(folder / "train" / "cat" / "pipe.png")


def nested(folder):
    for name in ("images", "more"):
        (folder / "train" / "cat" / name).mkdir()
        Image.new("L", (8, 8)).save(folder / "train" / "cat" / name / "1.png")


def folder_to_itself(folder):
    (folder / "train" / "cat" / "again").symlink_to(folder / "train", target_is_directory=True)


def flat(folder):
    (folder / "train" / "cat" / "flat.png").write_bytes(b"P6 8 0 255\n")


def black(folder):
    Image.new("L", (9, 8), 50).save(folder / "train" / "dog" / "1.png")


def giant(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "train" / "cat" / "giant.png")


PICTURES = [
    (link_to_itself, r"loop\.png is no picture that can be read \(.*symbolic links.*\): remove it"),
    (link_to_nothing, r"gone\.png is no picture that can be read \(.*No such file.*\): remove it"),
    (pipe, r"pipe\.png is no picture that can be read \(it is no regular file\): remove it"),
    (
        nested,
        r"2 folders lie within folders of classes, first \S*/train/cat/images: .* move theirs up or remove",
    ),
    (
        folder_to_itself,
        r"1 folders lie within folders of classes, first \S*/train/cat/again: pictures are read from",
    ),
    (flat, r"flat\.png is no picture that can be read"),
    (black, "all 2 training images are equal"),
    (giant, r"giant\.png is no picture that can be read \(its 10000 x 10000 pixels are more than"),
]


@pytest.mark.filterwarnings("ignore:Image size")  # Pillow warns of the giant, besides
@pytest.mark.parametrize(("harm", "sentence"), PICTURES, ids=[case[0].__name__ for case in PICTURES])
def test_absurd_folders_of_pictures_are_refused(folder, harm, sentence):
    harm(folder)
    with pytest.raises(UserError, match=sentence):
        ImageFolder(str(folder)).load()


def test_a_folder_with_a_long_name_is_refused():
    with pytest.raises(UserError, match="there is no folder xxx"):
        ImageFolder("x" * 300).load()


# -- chance


def mutated(raw, rng):
    """A few bytes changed, taken away, doubled or replaced by extremes."""
    raw = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(raw) or 1), rng.choice((1, 2, 4, 8, 64))
        how = rng.randrange(5)
        if how == 0:
            raw[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            raw[at : at + length] = rng.choice((b"\x00", b"\xff", b"\x7f", b"-", b"9")) * length
        elif how == 2:
            del raw[at : at + length]
        elif how == 3:
            raw[at:at] = raw[at : at + length]
        else:
            del raw[at:]
    return bytes(raw)


def picture(ending):
    def make(folder):
        for part in ("train", "test"):
            for number, name in enumerate(("cat", "dog")):
                (folder / part / name).mkdir(parents=True)
                Image.fromarray(X[number]).convert("RGB").save(folder / part / name / f"1.{ending}")
        return folder / "train" / "cat" / f"1.{ending}", ImageFolder(str(folder), size=8)

    return make


def of(name, make):
    def both(folder):
        source = make(folder)
        return folder / name, source

    return both


FUZZED = {
    "npz": of("a.npz", npz),
    "idx": of("train-images-idx3-ubyte", lambda f: mnist(f, idx((6, 4, 4), BYTES), "")),
    "idx.gz": of("train-images-idx3-ubyte.gz", lambda f: mnist(f, idx((6, 4, 4), BYTES))),
    "cifar": of("cifar-10-binary.tar.gz", cifar10),
    "mat": of(
        "train_32x32.mat",
        lambda f: svhn(f, X=np.zeros((32, 32, 3, 6), np.uint8), y=Y[:, None].astype(np.uint8)),
    ),
} | {ending: picture(ending) for ending in ("png", "jpg", "bmp", "gif", "tiff", "webp", "ppm")}


@pytest.mark.parametrize("kind", FUZZED)
def test_a_mutated_file_is_read_or_refused_by_a_sentence(tmp_path, kind, fuzz):
    count, seed = fuzz
    rng = random.Random(f"{kind} {seed}")
    path, source = FUZZED[kind](tmp_path)
    whole = path.read_bytes()
    for _ in range(count):
        path.write_bytes(mutated(whole, rng))
        with contextlib.suppress(UserError):
            source.load()
