import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsyfed.devices.dataset import ArrayFile, Dataset, permutation
from sparsyfed.edge_runtime.errors import ConfigurationError, FormatError, InputError


def saved(directory: Path, x: np.ndarray, y: np.ndarray) -> Dataset:
    np.save(directory / "x.npy", x)
    np.save(directory / "y.npy", y)
    return Dataset(directory)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 2), (4, 2, 3, 5)])
def test_a_saved_array_is_read_as_it_is(
    tmp_path: Path, dtype: type, shape: tuple[int, ...]
) -> None:
    array: np.ndarray = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    read = ArrayFile(tmp_path / "a.npy")
    assert read.shape == shape
    assert read.values.tolist() == array.reshape(-1).tolist()
    read.close()


def test_version_2_is_read(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, array, version=(2, 0))
    assert ArrayFile(tmp_path / "a.npy").values.tolist() == list(range(6))


def npy(header: str | bytes, data: bytes = bytes(8), version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1") if isinstance(header, str) else header
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", None),
        (b"\x93NUMPY", "version"),
        (b"\x93NUMPY\x01\x00\x05", "ends within"),
        (b"PK\x03\x04" + bytes(100), "magic"),
        (npy(GOOD, version=b"\x03\x00"), "version"),
        (npy(GOOD, data=bytes(7)), "got 7 bytes of data, wanted 8"),
        (npy(GOOD, data=bytes(9)), "got 9 bytes of data, wanted 8"),
        (npy(GOOD)[:30], "header of 58 bytes"),
        (npy(GOOD + " " * 5000), "header of 5058 bytes"),
        (npy(GOOD.replace("<f4", ">f4")), "type '>f4'"),
        (npy(GOOD.replace("<f4", "|O")), "type '|O'"),
        (npy(GOOD.replace("'<f4'", "[('a', '<f4')]")), "type"),
        (npy(GOOD.replace("False", "True")), "Fortran"),
        (npy(GOOD.replace("(2,)", "(-2,)")), "shape"),
        (npy(GOOD.replace("(2,)", "(0,)")), "shape"),
        (npy(GOOD.replace("(2,)", "(True, 2)")), "shape"),
        (npy(GOOD.replace("(2,)", "(99999999999999999999,)")), "shape"),
        (npy(GOOD.replace("(2,)", "(2147483647, 2147483647)")), "bytes of data"),
        (npy(GOOD.replace("(2,)", "()")), "shape"),
        (npy(GOOD.replace("(2,)", "2")), "shape"),
        (npy(GOOD.replace("(2,)", "(" + "1," * 33 + ")")), "shape"),
        (npy(GOOD.replace("'shape'", "'form'")), "keys"),
        (npy("__import__('os').system('true')"), "literal"),
        (npy("(" * 2000), "literal"),
        (npy("[" * 90 + "]" * 90), "keys"),
        (npy("9" * 4000), "literal|keys"),
        (npy(b"\x00\xff"), "literal"),
        (npy("{[]: 1}"), "literal"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises((FormatError, ConfigurationError), match=message):
        ArrayFile(path)


@given(st.binary(max_size=120), st.integers(0, 80))
def test_any_header_gives_an_array_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x.npy"
    good = npy(GOOD)
    path.write_bytes(good[:place] + noise + good[place + len(noise) :])
    try:
        ArrayFile(path).close()
    except (FormatError, ConfigurationError):
        return


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"x\.npy"):
        Dataset(tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2), np.float32), np.zeros(4, np.int32), "3 examples and 4 targets"),
        (np.zeros((3, 2), np.int32), np.zeros(3, np.int32), "float32"),
        (np.zeros((3, 2), np.float32), np.zeros((3, 2), np.int32), "labels of shape"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        saved(tmp_path, x, y)


@pytest.mark.parametrize("label_type", [np.int32, np.int64])
def test_an_epoch_gives_each_example_once_with_its_label(tmp_path: Path, label_type: type) -> None:
    x = np.arange(11 * 6, dtype=np.float32).reshape(11, 2, 3)
    dataset = saved(tmp_path, x, np.arange(11).astype(label_type))
    seen, counts = [], []
    for batch in dataset.batches(4, seed=3, epoch=0):
        counts.append(batch.count)
        rows = np.asarray(batch.x).reshape(batch.count, 2, 3)
        labels = np.asarray(batch.y)
        assert labels.dtype == label_type
        np.testing.assert_array_equal(rows, x[labels])
        seen += labels.tolist()
    assert counts == [4, 4, 3]
    assert sorted(seen) == list(range(11))
    assert seen != list(range(11))


def test_targets_of_a_regression_keep_their_shape(tmp_path: Path) -> None:
    y = np.arange(6, dtype=np.float32).reshape(3, 2)
    dataset = saved(tmp_path, np.zeros((3, 1), np.float32), y)
    assert dataset.target_size == 2
    (batch,) = dataset.batches(8, seed=0, epoch=0)
    assert sorted(np.asarray(batch.y).reshape(3, 2).tolist()) == y.tolist()


def test_batches_share_one_pair_of_buffers(tmp_path: Path) -> None:
    dataset = saved(tmp_path, np.zeros((8, 2), np.float32), np.zeros(8, np.int32))
    owners = {id(batch.x.obj) for batch in dataset.batches(3, seed=0, epoch=0)}
    assert len(owners) == 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert permutation(50, 7, 0) == permutation(50, 7, 0)
    assert permutation(50, 7, 0) != permutation(50, 7, 1)
    assert permutation(50, 7, 0) != permutation(50, 8, 0)


def test_the_order_is_the_same_on_every_machine() -> None:
    # Worked out by hand from the definition of SplitMix64: its first outputs from state 0 are
    # e220a8397b1dcdaf, 6e789e6aa1b965f4, 06c45d188009454f.
    first = 0xE220A8397B1DCDAF % 4, 0x6E789E6AA1B965F4 % 3, 0x06C45D188009454F % 2
    order = [0, 1, 2, 3]
    for last, chosen in zip((3, 2, 1), first, strict=True):
        order[last], order[chosen] = order[chosen], order[last]
    assert permutation(4, 0, 0).tolist() == order


@given(st.integers(1, 200), st.integers(0, 2**64), st.integers(0, 1000))
def test_a_permutation_holds_each_number_once(count: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(count, seed, epoch)) == list(range(count))


def test_each_order_of_three_comes_equally_often() -> None:
    orders = [tuple(permutation(3, seed, 0)) for seed in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts) < 150  # five standard deviations


def test_a_batch_size_below_one_is_refused(dataset: Dataset) -> None:
    with pytest.raises(InputError, match="batch size 0"):
        next(dataset.batches(0, 0, 0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 40_000, 69_999])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float, row: int) -> None:
    x = np.full((70_000, 2), 3e38, np.float32)  # more than one piece, and a sum far beyond float32
    y = np.zeros(70_000, np.int32)
    saved(tmp_path, x, y).require_valid_values()
    x[row, 1] = value
    with pytest.raises(ConfigurationError, match=rf"x.npy: got {value} in example {row}, wanted"):
        saved(tmp_path, x, y).require_valid_values()


def test_infinities_that_cancel_are_found(tmp_path: Path) -> None:
    x = np.array([[1], [np.inf], [-np.inf]], np.float32)
    with pytest.raises(ConfigurationError, match="got inf in example 1"):
        saved(tmp_path, x, np.zeros(3, np.int64)).require_valid_values()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_label_below_zero_is_named(tmp_path: Path, dtype: type) -> None:
    y: np.ndarray = np.arange(9).astype(dtype)
    y[7] = -1
    with pytest.raises(ConfigurationError, match=r"y.npy: got -1 in example 7, wanted labels"):
        saved(tmp_path, np.zeros((9, 2), np.float32), y).require_valid_values()


def test_targets_of_a_regression_may_be_negative_and_not_infinite(tmp_path: Path) -> None:
    y: np.ndarray = np.full((3, 2), -1.0, np.float32)
    saved(tmp_path, np.zeros((3, 1), np.float32), y).require_valid_values()
    y[2, 0] = np.nan
    with pytest.raises(ConfigurationError, match=r"y.npy: got nan in example 2, wanted finite"):
        saved(tmp_path, np.zeros((3, 1), np.float32), y).require_valid_values()
