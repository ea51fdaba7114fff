"""Records of JSON Lines and CSV tables: which field is the text and which the title."""

import csv
import itertools
import json
from collections.abc import Iterable, Iterator

TEXT_FIELDS = ("text", "story", "content")
TITLE_FIELDS = ("title",)


def json_records(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) of JSON Lines. A line that is a string is a text without title.

    Raises ValueError that names the line.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or error
            raise ValueError(
                f"line {number} of {name!r} is no JSON record ({reason}); mend or remove it"
            ) from None
        if isinstance(record, str):
            record = {"text": record}
        if not isinstance(record, dict):
            raise ValueError(
                f"line {number} of {name!r} is no JSON record but {line.strip()[:40]!r}; each "
                f'line must be like {{"title": …, "text": …}}'
            )
        yield number, record


def csv_records(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) of a table whose first line names the columns.

    The columns are separated by a comma, a semicolon or a tab. Raises ValueError that names a
    line with a wrong number of columns, or a quotation mark that is never closed.
    """
    lines = iter(lines)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    number = 1
    limit = csv.field_size_limit(2**31 - 1)  # 131,072 characters are too few for a story
    try:
        rows = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
        columns = [column.strip() for column in next(rows, [])]
        while True:
            number = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            if not row:
                continue
            if len(row) != len(columns):
                raise ValueError(
                    f"line {number} of {name!r} has {len(row)} columns and the first line has "
                    f"{len(columns)}; put text with {delimiter!r} in it between quotation marks"
                )
            yield number, dict(zip(columns, row, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"the row at line {number} of {name!r} is no CSV ({error}); check its quotation marks"
        ) from error
    finally:
        csv.field_size_limit(limit)


def record_fields(record: dict, where: str) -> tuple[str, str | None, list[str]]:
    """The text, the title (or None) and the names of the other fields of a record.

    Raises ValueError that begins with `where` if the record has no text.
    """
    names = {str(name).strip().lower(): name for name in reversed(record)}
    text_name = next((names[name] for name in TEXT_FIELDS if name in names), None)
    if text_name is None:
        fields = ", ".join(map(repr, record)) or "none"
        raise ValueError(f"{where} has no field 'text'; its fields are {fields}: rename one")
    title_name = next((names[name] for name in TITLE_FIELDS if name in names), None)
    text = record[text_name]
    title = record[title_name] if title_name is not None else None
    if isinstance(title, int | float):
        title = str(title)
    for name, value in ((text_name, text), (title_name, title)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{where}: the field {name!r} is {value!r:.40}; it must be a text")
    others = [name for name in record if name not in (text_name, title_name)]
    return text or "", title, others
