"""The file of choices: whole lines, whatever happens to it."""

import json
import multiprocessing
import os
import resource
import time

import pytest

from golpo.choices import CHOICES_FILE, Choice, append_choice, read_choices

STORIES = ["A fox ran.<|end|>", "An owl sang.", "গল্প 🦉\nof two lines"]


def make_choice(number=0, **changes) -> Choice:
    about = {"opening": f"Number {number}", "title": "The Lamp", "checkpoint": "ab12"}
    settings = [{"seed": seed, "temperature": 0.8} for seed in range(3)]
    return Choice(**{"stories": STORIES, "liked": 1, "settings": settings, **about, **changes})


def test_what_is_appended_is_read_again(tmp_path):
    chosen = [make_choice(1), make_choice(2, liked=2, request="Hero: Hanna")]
    for choice in chosen:
        path = append_choice(tmp_path / "new" / "folder", choice)
    assert read_choices(tmp_path / "new" / "folder") == (chosen, 0)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [record["liked"] for record in records] == [1, 2]
    assert records[0]["stories"] == STORIES
    assert records[0]["time"].endswith("+00:00")


def test_no_file_is_no_choice(tmp_path):
    assert read_choices(tmp_path) == ([], 0)
    assert read_choices(tmp_path).describe() == "0 choices in choices.jsonl."


def test_torn_and_foreign_lines_are_skipped_and_counted(tmp_path):
    path = append_choice(tmp_path, make_choice(1))
    whole = path.read_bytes()
    foreign = [b'{"step": 3}', b"[1, 2]", b"null", b'"text"', b"\xff\xfe\x00", b"[" * 100_000]
    record = json.loads(whole)
    wrong = [{**record, "liked": 3}, {**record, "liked": True}, {**record, "stories": "one"}]
    wrong += [{**record, "stories": [1, 2]}, {**record, "title": None}, {**record, "stories": [""]}]
    foreign += [json.dumps(one).encode() for one in wrong]
    path.write_bytes(b"\n\n".join([*foreign, whole.strip(), whole[: len(whole) // 2]]))
    append_choice(tmp_path, make_choice(2))
    read = read_choices(tmp_path)
    assert [choice.opening for choice in read.choices] == ["Number 1", "Number 2"]
    assert read.skipped == len(foreign) + 1
    assert "2 choices" in read.describe()
    assert f"{read.skipped} lines skipped" in read.describe()


def test_a_line_from_before_there_were_notes_is_read(tmp_path):
    path = append_choice(tmp_path, make_choice(1, note="Mira is brave."))
    assert read_choices(tmp_path).choices[0].note == "Mira is brave."
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["note"]
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    assert [choice.note for choice in read_choices(tmp_path).choices] == [""]


def test_a_field_of_a_later_version_does_no_harm(tmp_path):
    path = append_choice(tmp_path, make_choice(1))
    path.write_text(json.dumps({**json.loads(path.read_text()), "stars": 5}) + "\n")
    assert len(read_choices(tmp_path).choices) == 1


@pytest.mark.parametrize("size", range(0, 300, 23))
def test_wherever_a_line_is_cut_the_others_are_kept(tmp_path, size):
    path = append_choice(tmp_path, make_choice(1))
    first = path.stat().st_size
    append_choice(tmp_path, make_choice(2))
    assert first + size < path.stat().st_size - 1
    os.truncate(path, first + size)
    append_choice(tmp_path, make_choice(3))
    openings = [choice.opening for choice in read_choices(tmp_path).choices]
    assert openings == ["Number 1", "Number 3"]


def append_many(folder, done) -> None:
    for number in range(1, 10**6):
        append_choice(folder, make_choice(number, title="x" * 20_000))
        done.value = number


def test_kill_9_loses_no_choice_that_was_made(tmp_path):
    processes = multiprocessing.get_context("fork")
    made = 0
    for round_number in range(6):
        done = processes.Value("i", 0, lock=False)
        process = processes.Process(target=append_many, args=(tmp_path, done))
        process.start()
        limit = time.monotonic() + 20
        while done.value < 3 and time.monotonic() < limit:
            time.sleep(0.001 * (round_number + 1))
        process.kill()
        process.join()
        assert done.value >= 3
        made += done.value
        read = read_choices(tmp_path)
        assert len(read.choices) >= made
        made = len(read.choices)
    append_choice(tmp_path, make_choice(7))
    assert read_choices(tmp_path).choices[-1] == make_choice(7, time=read_last(tmp_path)["time"])


def read_last(folder) -> dict:
    return json.loads((folder / CHOICES_FILE).read_text(encoding="utf-8").splitlines()[-1])


def append_at_once(folder, first) -> None:
    for number in range(first, first + 25):
        append_choice(folder, make_choice(number, title="y" * 5000))


def test_two_processes_append_at_once(tmp_path):
    processes = multiprocessing.get_context("fork")
    writers = [processes.Process(target=append_at_once, args=(tmp_path, n)) for n in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    read = read_choices(tmp_path)
    expected = {f"Number {n}" for first in (0, 100) for n in range(first, first + 25)}
    assert {choice.opening for choice in read.choices} == expected
    assert read.skipped == 0


def fill_the_disk(folder, refused) -> None:
    size = (folder / CHOICES_FILE).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
    try:
        append_choice(folder, make_choice(2))
    except OSError:
        refused.value = 1


def test_a_full_disk_is_an_error_and_spoils_nothing(tmp_path):
    append_choice(tmp_path, make_choice(1))
    processes = multiprocessing.get_context("fork")
    refused = processes.Value("i", 0)
    process = processes.Process(target=fill_the_disk, args=(tmp_path, refused))
    process.start()
    process.join()
    assert refused.value == 1
    append_choice(tmp_path, make_choice(3))
    read = read_choices(tmp_path)
    assert [choice.opening for choice in read.choices] == ["Number 1", "Number 3"]
    assert read.skipped == 1


def test_an_unmounted_drive_is_an_error(tmp_path, monkeypatch):
    from golpo import files

    monkeypatch.setattr(files, "MOUNT_POINTS", {tmp_path})
    for use in (read_choices, lambda folder: append_choice(folder, make_choice())):
        with pytest.raises(OSError, match="not mounted"):
            use(tmp_path / "MyDrive" / "golpo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stories": ["one"]}, "number of stories is 1"),
        ({"stories": list("abcde")}, "number of stories is 5"),
        ({"stories": ("a", "b")}, "stories is"),
        ({"stories": ["a", 2]}, "a story is 2"),
        ({"liked": 3}, "liked story is 3"),
        ({"liked": -1}, "liked story is -1"),
        ({"stories": ["a", "a"], "liked": 0}, "twice"),
        ({"title": None}, "title is None"),
        ({"note": 3}, "note is 3"),
        ({"request": {"hero": "Hanna"}}, "request is {'hero'"),
    ],
)
def test_a_wrong_choice_gets_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        make_choice(**changes)
