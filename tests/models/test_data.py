import gzip
import struct

import numpy as np
import pytest

from celosia.models import data

FASHION_FILES = ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is the only place where data sets are looked for."""
    monkeypatch.setattr(data, "_roots", lambda: [tmp_path])
    return tmp_path


def compress(content):
    """The same bytes at any time: gzip's header would carry the second."""
    return gzip.compress(content, compresslevel=1, mtime=0)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(compress(header + array.tobytes()))


def write_fashion(folder, counts):
    for file, count in zip(FASHION_FILES, counts):
        shape = (count, 28, 28) if "images" in file else (count,)
        write_idx(folder / file, np.full(shape, 7, np.uint8))


@pytest.mark.parametrize("name", data.names())
def test_missing_data_says_where_to_get_it(name, folder):
    assert not data.available(name)
    with pytest.raises(data.DataError) as caught:
        data.load(name)
    message = str(caught.value)
    assert message == data.missing(name)
    assert "\n" not in message and "$CELOSIA_DATA" in message and "https://" in message


def test_missing_fashion_names_the_package_and_the_files(folder):
    message = data.missing("fashion-mnist")
    for part in ("dataset-fashion-mnist", *FASHION_FILES):
        assert part in message


@pytest.mark.parametrize("action", [data.load, data.available, data.missing, data.sample, data.preprocess])
def test_unknown_name(action):
    with pytest.raises(data.DataError, match="data set must be one of fashion-mnist, mnist, not 'cifar'"):
        action("cifar")


def test_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CELOSIA_DATA", str(tmp_path))
    write_fashion(tmp_path, (60_000, 60_000, 10_000, 10_000))
    assert (data.load("fashion-mnist").train_labels == 7).all()


def test_folder_of_the_name(folder):
    inner = folder / "fashion-mnist"
    inner.mkdir()
    write_fashion(inner, (60_000, 60_000, 10_000, 10_000))
    assert data.load("fashion-mnist").test_images.shape == (10_000, 28, 28)


def test_wrong_count(folder):
    write_fashion(folder, (60_000, 60_000, 10_000, 9_999))
    with pytest.raises(data.DataError, match=r"test images and labels must have shapes \(10000, 28, 28\) and \(10000,\), not .* \(9999,\)"):
        data.load("fashion-mnist")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"plain", "is not a gzip file", id="plain"),
        pytest.param(compress(b"\0\0\x08\1" + bytes(8))[:-6], "is not a gzip file", id="truncated"),
        pytest.param(compress(b"\0\0\x0d\1\0\0\0\1\0\0\0\0"), "is not an IDX file of unsigned bytes", id="floats"),
        pytest.param(compress(b"\0\0"), "is not an IDX file of unsigned bytes", id="no-magic"),
        pytest.param(compress(b"\0\0\x08\2\0\0\0\1"), "ends inside its header", id="short-header"),
        pytest.param(compress(b"\0\0\x08\1\0\0\0\3\0\0"), "must hold 3 bytes after its header, not 2", id="short-data"),
    ],
)
def test_damaged_idx(content, message, tmp_path):
    path = tmp_path / "damaged.gz"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=message):
        data.read_idx(path)


def test_idx_round_trip(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "a.gz", array)
    np.testing.assert_array_equal(data.read_idx(tmp_path / "a.gz"), array)


@pytest.mark.parametrize("pickled", [False, True])
def test_damaged_mnist(pickled, folder):
    if pickled:
        objects = {key: np.array([{}], dtype=object) for key in ("train_images", "train_labels", "test_images", "test_labels")}
        np.savez(folder / "mnist.npz", allow_pickle=True, **objects)
    else:
        (folder / "mnist.npz").write_bytes(b"not a zip")
    with pytest.raises(data.DataError, match=r"mnist\.npz is not the MNIST archive"):
        data.load("mnist")


def test_sample_is_the_beginning_of_the_data_set():
    sample = data.sample("fashion-mnist")
    assert sample.train_images.shape == (256, 28, 28) and sample.test_images.shape == (1000, 28, 28)
    if not data.available("fashion-mnist"):
        pytest.skip(data.missing("fashion-mnist"))
    whole = data.load("fashion-mnist")
    for key, values in vars(sample).items():
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, getattr(whole, key)[: len(values)])


def test_no_sample_of_mnist():
    with pytest.raises(data.DataError, match="no sample of mnist comes with the package"):
        data.sample("mnist")


def test_preprocess():
    images = np.array([[[[0, 255]]], [[[51, 0]]]], np.uint8)
    result = data.Preprocess(mean=(0.5, 0.25), std=(0.5, 0.125))(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, [[[[-1]], [[6]]], [[[-0.6]], [[-2]]]], rtol=1e-6)


@pytest.mark.parametrize("images", [np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)])
def test_preprocess_refuses_other_images(images):
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, H, W, 1\), not"):
        data.Preprocess(mean=(0.5,), std=(0.5,))(images)
