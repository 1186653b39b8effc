"""Blocks come back as they were written, are done only when all of them is there, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.storage.arrays import Store, create, done_blocks, open_store, read, write_block


def values(start: int, stop: int, width: int = 3) -> dict[str, np.ndarray]:
    """What the rows [start, stop) of the test store hold: no two rows alike."""
    rows = np.arange(start, stop)
    return {"score": rows.astype(np.float32) / 7, "hidden": rows[:, None] * 10.0 + np.arange(width)}


def filled(folder: Path, rows: int = 10, block_rows: int = 4) -> Store:
    store = create(folder, {"score": ((), np.float32), "hidden": ((3,), np.float16)}, rows, block_rows)
    for block in range(store.blocks):
        write_block(store, block, values(*store.block_range(block)))
    return store


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    filled(tmp_path / "s")
    store = open_store(tmp_path / "s")
    assert (store.rows, store.block_rows, store.blocks) == (10, 4, 3)
    assert done_blocks(store) == {0, 1, 2}
    assert read(store, "score").dtype == np.float32 and read(store, "hidden").dtype == np.float16
    np.testing.assert_array_equal(read(store, "score"), values(0, 10)["score"])
    np.testing.assert_array_equal(read(store, "hidden", 3, 9), values(3, 9)["hidden"])
    np.testing.assert_array_equal(read(store, "score", 9), values(9, 10)["score"])
    np.testing.assert_array_equal(read(store, "score", -2), values(8, 10)["score"])
    assert read(store, "hidden", 7, 7).shape == (0, 3)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    block_rows=st.integers(1, 50),
    shape=st.lists(st.integers(1, 4), max_size=2),
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "bool", "int64"]),
    order=st.randoms(use_true_random=False),
)
def test_any_layout_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, block_rows: int, shape: list[int], dtype: str, order: Any
) -> None:
    folder = tmp_path_factory.mktemp("store") / "s"
    store = create(folder, {"x": (shape, jnp.dtype(dtype))}, rows, block_rows)
    whole = (np.arange(rows * int(np.prod(shape))).reshape(rows, *shape) % 5).astype(jnp.dtype(dtype))
    blocks = list(range(store.blocks))
    order.shuffle(blocks)
    for n, block in enumerate(blocks):
        assert done_blocks(store) == set(blocks[:n])
        start, stop = store.block_range(block)
        write_block(store, block, {"x": jnp.asarray(whole[start:stop]) if dtype != "int64" else whole[start:stop]})
    np.testing.assert_array_equal(read(open_store(folder), "x"), whole)


def test_a_block_is_done_when_its_marker_and_all_chunks_are_there(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "done" / "c" / "1").unlink()  # killed between the arrays and the marker
    assert done_blocks(open_store(tmp_path)) == {0, 2}
    (tmp_path / "hidden" / "c" / "2" / "0").unlink()
    assert done_blocks(store) == {0}
    write_block(store, 1, values(4, 8))
    write_block(store, 2, values(8, 10))
    assert done_blocks(store) == {0, 1, 2}


def test_zeros_are_written_too(tmp_path: Path) -> None:
    store = create(tmp_path, {"x": ((), np.float32)}, 4, 2)
    write_block(store, 0, {"x": np.zeros(2)})
    assert done_blocks(store) == {0}
    with pytest.raises(UserError, match="x/c/1: block 1 is not written yet; run the stage to its end"):
        read(store, "x")
    np.testing.assert_array_equal(read(store, "x", 0, 2), [0, 0])


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "score" / "c" / "1"
    whole = path.read_bytes()
    assert len(whole) == 4 * 4 + 4  # four floats and a checksum: one chunk a block, not compressed
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        store = open_store(tmp_path)
        with pytest.raises(UserError) as error:
            read(store, "score")
        assert str(error.value).startswith(f"{path}: block 1 is damaged (Digest mismatch")
        assert "delete this file" in str(error.value) and "\n" not in str(error.value)
        np.testing.assert_array_equal(read(store, "score", 0, 4), values(0, 4)["score"])  # the others are whole
    path.unlink()  # as the message says
    store = open_store(tmp_path)
    assert done_blocks(store) == {0, 2}
    write_block(store, 1, values(4, 8))
    np.testing.assert_array_equal(read(store, "score"), values(0, 10)["score"])


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\x00" * 64])
def test_a_chunk_of_the_wrong_length(tmp_path: Path, content: bytes) -> None:
    filled(tmp_path)
    (tmp_path / "score" / "c" / "2").write_bytes(content)
    with pytest.raises(UserError, match="score/c/2: block 2 is damaged"):
        read(open_store(tmp_path), "score", 9, 10)


def test_a_damaged_description(tmp_path: Path) -> None:
    filled(tmp_path)
    for name in ("zarr.json", "score/zarr.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        for content in (b"{", b"{}", whole.replace(b"10", b"11", 1)):
            path.write_bytes(content)
            with pytest.raises(UserError, match="is damaged.*; delete the store and run the stage again"):
                open_store(tmp_path)
        path.write_bytes(whole)
    open_store(tmp_path)


def test_creating_again_opens_and_another_layout_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    layout = {"score": ((), np.float32), "hidden": ((3,), np.float16)}
    assert done_blocks(create(tmp_path, layout, 10, 4)) == {0, 1, 2}
    with pytest.raises(UserError, match="holds a store of another layout .rows is 10, not 12.; delete it"):
        create(tmp_path, layout, 12, 4)
    with pytest.raises(UserError, match="another layout .arrays is "):
        create(tmp_path, {"score": ((), np.float32)}, 10, 4)


def test_creating_goes_on_after_a_kill(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "zarr.json").unlink()  # it is written last
    store = filled(tmp_path)
    assert done_blocks(store) == {0, 1, 2}


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no array store; run the stage that writes it first"):
        open_store(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is a file, but a folder is needed there"):
        create(tmp_path / "file", {"x": ((), np.float32)}, 1, 1)


def test_mistakes_of_the_caller(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(ValueError, match="a block holds"):
        write_block(store, 0, {"score": np.zeros(4)})
    with pytest.raises(ValueError, match="hidden: block 2 has shape .2, 3., got .4, 3."):
        write_block(store, 2, {"score": np.zeros(2), "hidden": np.zeros((4, 3))})
    with pytest.raises(IndexError, match="block 3 of a store with 3 blocks"):
        write_block(store, 3, {"score": np.zeros(2), "hidden": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="at least 1"):
        create(tmp_path / "x", {"x": ((), np.float32)}, 0, 1)


def test_a_refusal_of_the_kernel(tmp_path: Path) -> None:
    """The system refuses files above 4 KiB, and the block is not done; then it gives in, and the block is."""
    store = create(tmp_path, {"x": ((), np.float32)}, 20_000, 10_000)
    block = {"x": np.ones(10_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            UserError, match="cannot write .*/x, block 0: the file is larger than the file system allows"
        ):
            write_block(store, 0, block)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done_blocks(store) == set()
    write_block(store, 0, block)
    assert done_blocks(store) == {0}


class FullDisk:
    """What tensorstore gives when the disk is full, for an array and for a marker."""

    def __init__(self, like: Any = None) -> None:
        self.dtype, self.shape = getattr(like, "dtype", None), getattr(like, "shape", None)

    def __getitem__(self, rows: slice) -> FullDisk:
        return self

    def write(self, *values: Any) -> FullDisk:
        return self

    def result(self) -> None:
        raise ValueError(
            'RESOURCE_EXHAUSTED: Error writing local file "/x/c/0": Failed writing: "/x/c/0.__lock": Failed to write'
            " 138564 bytes to file 3: No space left on device [os_error_code='28']"
        )


def test_a_full_disk(tmp_path: Path) -> None:
    store = create(tmp_path, {"x": ((), np.float32)}, 4, 2)
    full = dataclasses.replace(store, arrays={"x": FullDisk(store.arrays["x"])})
    with pytest.raises(UserError, match="cannot write .*/x, block 0: the disk is full; free some space and run again"):
        write_block(full, 0, {"x": np.ones(2)})
    full = dataclasses.replace(store, marks=FullDisk(store.marks))
    with pytest.raises(UserError, match="cannot write .*/done/c/1: the disk is full"):
        write_block(full, 1, {"x": np.ones(2)})
    assert done_blocks(store) == set()


def test_a_lock_file_left_by_a_killed_writer_is_in_nobodys_way(tmp_path: Path) -> None:
    store = filled(tmp_path)
    (tmp_path / "score" / "c" / "1.__lock").write_bytes(b"half")
    write_block(store, 1, values(4, 8))
    np.testing.assert_array_equal(read(store, "score"), values(0, 10)["score"])


def test_a_store_named_by_a_url(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    store = create(url, {"x": ((2,), np.int32)}, 3, 2)
    write_block(store, 1, {"x": np.array([[5, 6]])})
    assert done_blocks(open_store(url)) == {1}
    np.testing.assert_array_equal(read(store, "x", 2, 3), [[5, 6]])


def test_another_zarr_reader_would_find_its_way(tmp_path: Path) -> None:
    filled(tmp_path)
    group = json.loads((tmp_path / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    array = json.loads((tmp_path / "hidden" / "zarr.json").read_text())
    assert array["chunk_grid"]["configuration"]["chunk_shape"] == [4, 3]
    assert [codec["name"] for codec in array["codecs"]] == ["bytes", "crc32c"]


@pytest.mark.filterwarnings("error")
def test_a_plain_zarr_reader_finds_nothing_it_does_not_know(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    store = create(tmp_path / "s.zarr", {"x": ((2,), np.float32), "n": ((), np.int64)}, 5, 2, {"seed": 1})
    write_block(store, 0, {"x": np.ones((2, 2)), "n": [1, 2]})
    write_block(store, 2, {"x": np.ones((1, 2)), "n": [5]})
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert sorted(group.array_keys()) == ["done", "n", "x"] and list(group.group_keys()) == []
    assert group["done"][:].tolist() == [1, 0, 1] and group["n"][4:5].tolist() == [5]
    assert group.attrs["facts"] == {"seed": 1}
