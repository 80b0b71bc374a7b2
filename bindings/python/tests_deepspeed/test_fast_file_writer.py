"""DeepSpeed's writer of fast checkpoints on our handles: the one user of descriptors and of appended tails."""

import os
import types

import pytest
import torch


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("nbytes", [100, 4096, 65536, 5 * 65536 + 123])
def test_a_file_is_written_through_a_descriptor_and_its_tail_appended(monkeypatch, handle, tmp_path, double, nbytes):
    from deepspeed.io import fast_file_writer

    # An operator for casts that DeepSpeed would compile; what is written here is bytes already.
    monkeypatch.setattr(
        fast_file_writer,
        "UtilsBuilder",
        lambda: types.SimpleNamespace(load=lambda: types.SimpleNamespace(cast_to_byte_tensor=None)),
    )
    pinned = handle.new_cpu_locked_tensor(65536, torch.empty(0, dtype=torch.uint8))
    config = fast_file_writer.FastFileWriterConfig(dnvme_handle=handle, pinned_tensor=pinned, double_buffer=double)
    writer = fast_file_writer.FastFileWriter(str(tmp_path / "checkpoint"), config)
    data = os.urandom(nbytes)
    assert writer.write(data) == nbytes
    writer.close()
    assert (tmp_path / "checkpoint").read_bytes() == data
