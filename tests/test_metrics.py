"""The metrics file: whatever is in it, and whenever a process is killed, its records remain."""

import json
import multiprocessing
import time

import pytest

from golpo.metrics import METRICS_FILE, append_record, merge_records, read_records, trim_records


@pytest.fixture
def path(tmp_path):
    return tmp_path / METRICS_FILE


def records(*steps):
    return [{"step": step, "val_loss": 5.0 / step} for step in steps]


def test_records_are_appended_as_whole_lines(path):
    for record in records(1, 2, 3):
        append_record(path, record)
    assert [json.loads(line) for line in path.read_text().splitlines()] == records(1, 2, 3)
    assert read_records(path) == records(1, 2, 3)


def test_half_a_line_is_not_joined_with_the_next_record(path):
    append_record(path, records(1)[0])
    with open(path, "a") as file:
        file.write('{"step": 2, "val_l')
    append_record(path, records(3)[0])
    assert read_records(path) == records(1, 3)


DAMAGES = {
    "half a line joined with the next": b'{"step": 2, "val{"step": 3, "val_loss": 1.0}\n',
    "a record joined with half a line": b'{"step": 3, "val_loss": 1.0}{"step": 4, "va\n',
    "zeros": bytes(4096) + b"\n",
    "not UTF-8": b"\xff\xfe\x00{\x80\n",
    "an empty record": b"{}\n",
    "a list": b"[1, 2]\n",
    "a step that is not a number": b'{"step": "two"}\n',
    "many brackets": b"[" * 100_000 + b"\n",
    "many braces": b'{"a":' * 10_000 + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_lines_are_skipped_and_all_records_are_read(path, damage):
    lines = [json.dumps(record).encode() + b"\n" for record in records(1, 5)]
    path.write_bytes(lines[0] + DAMAGES[damage] + lines[1])
    found = read_records(path)
    assert [record["step"] for record in found if record["step"] in (1, 5)] == [1, 5]
    joined = "joined" in damage
    assert ([record for record in found if record["step"] == 3] != []) == joined
    append_record(path, records(7)[0])
    trim_records(path, 6)
    assert [record["step"] for record in read_records(path)][-1] == 5


def test_a_folder_of_that_name_is_moved_aside(path, capsys):
    path.mkdir()
    (path / "notes").write_text("kept")
    assert read_records(path) == []
    trim_records(path, 3)
    append_record(path, records(1)[0])
    assert read_records(path) == records(1)
    assert (path.with_name("metrics.jsonl.folder1") / "notes").read_text() == "kept"
    assert "is in the way of a file" in capsys.readouterr().out


def test_records_after_the_resumed_step_are_dropped(path):
    for record in records(1, 2, 3, 4):
        append_record(path, record)
    trim_records(path, 2)
    assert read_records(path) == records(1, 2)


def test_a_file_that_cannot_be_read_is_not_replaced(path, monkeypatch):
    append_record(path, records(1)[0])
    refused = []

    def refuse(self):
        refused.append(self)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "read_bytes", refuse)
        with pytest.raises(OSError, match="Input/output"):
            trim_records(path, 0)
    assert refused
    assert read_records(path) == records(1)


def test_merging_keeps_each_step_once_and_in_order():
    merged = merge_records(records(1, 2, 4), [{"step": 2, "val_loss": 9.0}, {"step": 3}])
    assert [record["step"] for record in merged] == [1, 2, 3, 4]
    assert merged[1]["val_loss"] == 9.0


def rewrite_for_ever(path, started):
    while True:
        trim_records(path, 30)
        started.set()


def test_kill_9_while_the_file_is_rewritten_loses_no_record(path, chance):
    for record in records(*range(1, 31)):
        append_record(path, record)
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        started = context.Event()
        process = context.Process(target=rewrite_for_ever, args=(path, started))
        process.start()
        assert started.wait(30)
        time.sleep(chance.uniform(0, 0.01))
        process.kill()
        process.join()
        assert read_records(path) == records(*range(1, 31))
