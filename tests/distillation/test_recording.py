"""Files of recorded outputs: bit by bit what was written, or refused."""

import numpy as np
import pytest
import torch

from ndkd.distillation.recording import EpochReader, EpochWriter, Rows
from ndkd.errors import Damaged

OUTPUTS = {
    "logits": torch.tensor([[0.1, float("-inf")], [float("nan"), -0.0], [3.0, 4.0]]).bfloat16(),
    "norm": torch.tensor([1.5, 1e-40, 3.0]),
    "classes": torch.tensor([[1], [2], [3]], dtype=torch.int32),
}
ROWS = Rows.of(OUTPUTS)


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.fixture
def file(tmp_path):
    """A whole file of two batches, three images and then two."""
    writer = EpochWriter(tmp_path / "epoch.rows", ROWS)
    writer.add(OUTPUTS)
    writer.add({name: tensor[:2] for name, tensor in OUTPUTS.items()})
    writer.commit()
    return writer.file


def test_rows_keep_every_bit():
    assert ROWS.size == 2 * 2 + 4 + 4
    found = ROWS.unpack(ROWS.pack(OUTPUTS))
    assert found.keys() == OUTPUTS.keys()
    assert all(same_bits(found[name], tensor) for name, tensor in OUTPUTS.items())
    assert Rows(ROWS.fields).fields == ROWS.fields


def test_batches_come_back_in_order_and_of_any_size(file):
    reader = EpochReader(file, ROWS)
    first, second = reader.take(1), reader.take(4)
    assert same_bits(first["norm"], OUTPUTS["norm"][:1])
    assert same_bits(second["norm"], OUTPUTS["norm"][[1, 2, 0, 1]])
    assert reader.take(1) is None
    reader.close()


def test_what_changes_after_a_step_is_kept_as_it_was(tmp_path):
    norm = torch.rand(3)
    writer = EpochWriter(tmp_path / "epoch.rows", Rows.of({"norm": norm}))
    kept = []
    for _ in range(50):  # as the outputs of a CUDA graph do
        kept.append(norm.clone())
        writer.add({"norm": norm})
        norm += 1
    writer.commit()
    assert torch.equal(EpochReader(writer.file, writer.rows).take(150)["norm"], torch.cat(kept))


class FullDisk:
    """A file whose second write fails."""

    def __init__(self, file):
        self.file, self.is_first = file, True

    def write(self, data):
        if not self.is_first:
            raise OSError(28, "No space left on device")
        self.is_first = False
        self.file.write(data)

    def close(self):
        self.file.close()


@pytest.mark.parametrize("batches", [2, 40])
def test_a_disk_that_is_full_is_noticed_at_the_latest_at_the_end(tmp_path, batches):
    writer = EpochWriter(tmp_path / "epoch.rows", ROWS)
    writer.out = FullDisk(writer.out)

    def write():
        for _ in range(batches):
            writer.add(OUTPUTS)
        writer.commit()

    with pytest.raises(OSError, match=r"No space left"):
        write()
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_nothing_is_seen_before_the_end_or_after_half(tmp_path):
    writer = EpochWriter(tmp_path / "epoch.rows", ROWS)
    writer.add(OUTPUTS)
    assert not writer.file.exists()
    writer.discard()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "longer"])
def test_a_damaged_file_is_refused(file, damage):
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[5] ^= 1
    file.write_bytes({"cut": content[:-1], "flipped": content, "empty": b"", "longer": content + bytes(12)}[damage])
    why = "it is empty" if damage == "empty" else "its checksum is another"
    with pytest.raises(Damaged, match=rf"epoch.rows is damaged: {why}; it is computed again$"):
        EpochReader(file, ROWS)


def test_two_that_write_at_once_both_end_well(tmp_path, monkeypatch):
    one = EpochWriter(tmp_path / "epoch.rows", ROWS)
    monkeypatch.setattr("os.getpid", lambda: 1)
    other = EpochWriter(tmp_path / "epoch.rows", ROWS)
    for writer in (one, other):
        writer.add(OUTPUTS)
    one.commit()
    other.commit()
    assert [file.name for file in tmp_path.iterdir()] == ["epoch.rows"]
    assert np.array_equal(EpochReader(one.file, ROWS).data, ROWS.pack(OUTPUTS))
