"""Tables of vectors: what was written can be read, and damaged rows count as missing."""

import multiprocessing

import numpy as np
import pytest
import torch

from mdistiller.engine.speed.vector_table import FileTable, MemoryTable

CPU = torch.device("cpu")


def file_table(folder, rows=10, values=3, dtype=torch.float32):
    folder.mkdir(exist_ok=True)
    for name, size in ((FileTable.VECTORS, rows * values * dtype.itemsize), (FileTable.CHECKSUMS, 4 * rows)):
        if not (folder / name).exists():
            (folder / name).write_bytes(bytes(size))
    return FileTable(folder, rows, values, dtype, CPU)


@pytest.fixture(params=["memory", "file"])
def table(request, tmp_path):
    return MemoryTable(10, 3, torch.float32, CPU) if request.param == "memory" else file_table(tmp_path / "table")


def test_what_is_written_is_read(table):
    keys, vectors = torch.tensor([7, 0, 3]), torch.randn(3, 3)
    assert table.missing(torch.arange(10)).all()
    table.write(keys, vectors)
    assert table.missing(torch.arange(10)).nonzero().flatten().tolist() == [1, 2, 4, 5, 6, 8, 9]
    assert torch.equal(table.read(torch.tensor([3, 7])), vectors[[2, 0]])
    assert table.filled() == pytest.approx(0.3)
    table.write(torch.tensor([3]), torch.zeros(1, 3))  # a vector of zeros counts as written, too
    assert not table.missing(torch.tensor([3])).any()
    assert table.damaged == 0


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_float16_rounds_and_gives_float32(tmp_path, kind):
    table = (
        MemoryTable(4, 3, torch.float16, CPU) if kind == "memory" else file_table(tmp_path / "t", 4, 3, torch.float16)
    )
    vectors = torch.randn(4, 3)
    table.write(torch.arange(4), vectors)
    assert torch.equal(table.read(torch.arange(4)), vectors.half().float())


def test_a_file_serves_a_later_run(tmp_path):
    vectors = torch.randn(2, 3)
    file_table(tmp_path / "table").write(torch.tensor([1, 4]), vectors)
    later = file_table(tmp_path / "table")
    assert later.missing(torch.arange(5)).tolist() == [True, False, True, True, False]
    assert torch.equal(later.read(torch.tensor([1, 4])), vectors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_flipped_bit_is_found(tmp_path, dtype):
    table = file_table(tmp_path / "table", 2, 5, dtype)
    table.write(torch.arange(2), torch.randn(2, 5))
    path = tmp_path / "table" / FileTable.VECTORS
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        later = file_table(tmp_path / "table", 2, 5, dtype)
        assert later.missing(torch.arange(2)).sum() == 1, bit
        assert later.damaged == 1
    path.write_bytes(whole)
    assert not file_table(tmp_path / "table", 2, 5, dtype).missing(torch.arange(2)).any()


def test_a_row_whose_values_never_reached_the_disk_is_not_known(tmp_path):
    table = file_table(tmp_path / "table")
    table.write(torch.tensor([5]), torch.randn(1, 3))
    np.memmap(tmp_path / "table" / FileTable.VECTORS, np.float32, "r+", shape=(10, 3))[5] = 0
    assert file_table(tmp_path / "table").missing(torch.tensor([5])).all()


def write_for_ever(folder, started):
    table = file_table(folder, 400, 50)
    keys = torch.arange(400)
    while True:
        table.write(keys, keys[:, None].float().expand(-1, 50))
        started.set()


def test_a_killed_process_leaves_whole_rows_or_none(tmp_path):
    context = multiprocessing.get_context("fork")
    for number in range(8):
        folder, started = tmp_path / f"table-{number}", context.Event()
        file_table(folder, 400, 50)
        process = context.Process(target=write_for_ever, args=(folder, started))
        process.start()
        try:
            if number % 2:
                started.wait()
        finally:
            process.kill()
            process.join()
        table = file_table(folder, 400, 50)
        known = torch.arange(400)[~table.missing(torch.arange(400))]
        assert torch.equal(table.read(known), known[:, None].float().expand(-1, 50))
        assert len(known) == 400 or not number % 2
