"""TensorBoard event files, as tensorboardX writes them and as TensorFlow 2 does."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.record_writer import masked_crc32c

from lrsweep.errors import UserError
from lrsweep.logs import read_log
from lrsweep.logs.tensorboard import _masked_crc, run_folders
from tests.logs.reading import read, same

NAN = math.nan


def record(event: Event) -> bytes:
    """An event in its frame."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def plain(step: int, tag: str, value: float) -> bytes:
    return record(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))


def tensor(step: int, tag: str, proto: TensorProto) -> bytes:
    return record(Event(step=step, summary=Summary(value=[Summary.Value(tag=tag, tensor=proto)])))


def write_run(folder: Path, losses: dict[int, float], norms: dict[int, float]) -> Path:
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("config", "lr = 1e-3")
        for step, loss in losses.items():
            writer.add_scalar("train/loss", loss, step)
            writer.add_scalar("eval/loss", 9.0, step)
        for step, norm in norms.items():
            writer.add_scalar("train/grad_norm", norm, step)
        writer.add_histogram("weights", [1.0, 2.0, 3.0], 1)
    return folder


def test_the_checksum_is_castagnolis() -> None:
    crc = 0xE3069283  # CRC-32C of "123456789" (RFC 3720, appendix B.4, has further ones)
    assert _masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    for data in (b"", bytes(8), bytes(range(256))):
        assert _masked_crc(data) == masked_crc32c(data)


def test_a_run_written_by_tensorboardx(tmp_path: Path) -> None:
    losses = {0: 4.25, 10: 4.125, 2_000_000_000: NAN, 2_000_000_010: -math.inf}
    folder = write_run(tmp_path, losses, {0: 0.75, 10: 0.5})
    (file,) = folder.iterdir()
    for path in (folder, file):
        curve = read_log(path)
        assert curve.format == "tensorboard"
        assert (curve.loss_key, curve.grad_norm_key) == ("train/loss", "train/grad_norm")
        assert curve.steps == tuple(losses)
        assert same(curve.losses, losses.values())
        assert curve.grad_norms == (0.75, 0.5, None, None)


@pytest.mark.parametrize(
    "proto",
    [
        TensorProto(dtype=1, float_val=[4.25]),
        TensorProto(dtype=1, tensor_content=struct.pack("<f", 4.25)),
        TensorProto(dtype=2, double_val=[4.25]),
        TensorProto(dtype=2, tensor_content=struct.pack("<d", 4.25)),
    ],
)
def test_scalars_encoded_as_tensors(proto: TensorProto, tmp_path: Path) -> None:
    proto.tensor_shape.CopyFrom(TensorShapeProto())
    histogram = TensorProto(dtype=2, tensor_content=struct.pack("<6d", *range(6)))
    words = TensorProto(dtype=7, string_val=[b"text"])
    content = tensor(3, "loss", proto) + tensor(3, "weights", histogram) + tensor(3, "config", words)
    curve = read(tmp_path, content)
    assert (curve.steps, curve.losses) == ((3,), (4.25,))


def test_several_files_of_one_folder_are_one_run_that_was_resumed(tmp_path: Path) -> None:
    first = b"".join(plain(step, "loss", 3.5) for step in range(10))
    second = b"".join(plain(step, "loss", 2.5) for step in range(8, 15))
    (tmp_path / "events.out.tfevents.1700000000.host").write_bytes(first)
    (tmp_path / "events.out.tfevents.1700000900.host").write_bytes(second)
    curve = read_log(tmp_path)
    assert curve.steps == tuple(range(15))
    assert curve.losses == (3.5,) * 8 + (2.5,) * 7
    assert any("went back from 9 to 8" in note for note in curve.notes)


def test_a_file_cut_short_anywhere_gives_what_came_before(tmp_path: Path) -> None:
    records = [plain(step, "loss", 4.0 - step / 8) for step in range(3)]
    content = b"".join(records)
    for end in range(len(records[0]), len(content)):
        curve = read(tmp_path, content[:end])
        whole = sum(end >= sum(map(len, records[:n])) for n in (1, 2, 3))
        assert curve.steps == tuple(range(whole))
        cut = end not in (len(records[0]), len(records[0]) + len(records[1]))
        assert len(curve.notes) == cut
        assert not cut or "cut short" in curve.notes[0]


def test_a_length_that_is_corrupt_ends_the_reading(tmp_path: Path) -> None:
    records = [plain(step, "loss", 4.0) for step in range(3)]
    broken = bytearray(b"".join(records))
    broken[len(records[0])] ^= 1
    curve = read(tmp_path, bytes(broken))
    assert curve.steps == (0,)
    assert "corrupt" in curve.notes[0]


def test_folders_of_runs(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        write_run(tmp_path / name, {0: 4.0}, {})
    (tmp_path / "empty").mkdir()
    assert run_folders(tmp_path) == [tmp_path / "a", tmp_path / "b" / "c"]
    with pytest.raises(UserError, match="a folder without TensorBoard event files"):
        read_log(tmp_path)
