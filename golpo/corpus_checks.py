"""Checks a corpus for what looks like a mistake: misspelt markers, HTML, stories without text.

Nothing is changed unless `fix_markers` is set, and everything that is found or changed is counted.
"""

import html.entities
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from golpo_utils import END, END_OF_TEXT, MARKERS, START, TITLE, TITLE_END

MOST_FORMS = 10  # how many different forms of a mistake a note names
LONGEST_LINE = 1 << 20  # characters; a longer line is checked in parts
LONGEST_MATCH = 400  # characters; no part ends within the last so many of a possible mistake

STARTS = "start|begin|bos|book[ _-]?start|story[ _-]?start|start[ _-]?(?:of[ _-]?)?(?:text|story)"
ENDS = "end|eos|book[ _-]?end|story[ _-]?end|end[ _-]?(?:of[ _-]?)?(?:text|story)"
TITLES = "title|book[ _-]?title|story[ _-]?title"
NAMES = rf"(?:(?P<start{{n}}>{STARTS})|(?P<end{{n}}>{ENDS})|(?P<title{{n}}>{TITLES}))"
# Forms of a misspelt marker: <|END|>, <end>, </title|> · &lt;|end|&gt; · <|end| · |end|>
NEAR_MARKER = re.compile(
    r"(?=[<＜|&])(?:"  # makes the search fast
    + "|".join(
        (
            r"[<＜]\s?[|/\\]{0,2}\s?" + NAMES.format(n=1) + r"\s?[|/\\]{0,2}\s?[>＞]",
            r"&lt;\s?[|/\\]{0,2}\s?" + NAMES.format(n=2) + r"\s?[|/\\]{0,2}\s?&gt;",
            r"<[|/\\]{1,2}\s?" + NAMES.format(n=3) + r"\s?\|?(?![\w|>])",
            r"(?<![<|/\w])\|\s?" + NAMES.format(n=4) + r"\s?\|>",
        )
    )
    + ")",
    re.IGNORECASE,
)
TAGS = (
    "p|br|div|span|i|b|u|em|strong|small|big|center|font|h[1-6]|a|img|ul|ol|li|dl|dt|dd|table|"
    "thead|tbody|tr|td|th|blockquote|q|cite|code|hr|pre|sup|sub|script|style|html|head|body|meta|"
    "link|section|article|header|footer|nav|figure|iframe|button|input|form|label"
)
HTML = re.compile(
    r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});|"
    rf"</?(?:{TAGS})(?:\s[^<>=]{{1,40}}=[^<>]{{0,300}})?\s?/?>",
    re.IGNORECASE,
)
ANY_MARKER = re.compile("|".join(map(re.escape, MARKERS)))


class TextBlock(NamedTuple):
    """A part of a corpus, and where it comes from."""

    text: str
    line: int | None  # the number of its first line, or None for a record or a chapter
    source: str  # "", the name of a file among several, or "record 12"

    def place(self, position: int) -> str:
        """Where the character at `position` of the text is, for messages."""
        if self.line is None:
            return self.source
        line = f"line {self.line + self.text.count(chr(10), 0, position)}"
        return f"{line} of {self.source!r}" if self.source else line


@dataclass
class Findings:
    """Forms of one kind of mistake: how often each occurs, and where first."""

    counts: Counter = field(default_factory=Counter)
    places: dict = field(default_factory=dict)

    def add(self, form: str, block: TextBlock, position: int) -> None:
        """Count `form`, found at `position` of `block`."""
        if form not in self.counts:
            self.places[form] = block.place(position)
        self.counts[form] += 1

    def __str__(self) -> str:
        forms = [
            f"{count} × {form!r} (first in {self.places[form]})"
            for form, count in self.counts.most_common(MOST_FORMS)
        ]
        more = len(self.counts) - MOST_FORMS
        return ", ".join(forms) + (f" and {more} other forms" if more > 0 else "")


@dataclass
class CorpusReport:
    """What was found and done while a corpus was read."""

    source_notes: list[str] = field(default_factory=list)  # sentences from the file's reader
    near_markers: Findings = field(default_factory=Findings)
    fixed: Findings = field(default_factory=Findings)
    open_titles: Findings = field(default_factory=Findings)
    html: Findings = field(default_factory=Findings)
    end_of_text: Findings = field(default_factory=Findings)
    separated: bool = False  # whether <|endoftext|> separates the stories
    empty_stories: int = 0
    ends_added: int = 0

    def notes(self) -> list[str]:
        """A sentence for each thing that was found or done."""
        notes = list(self.source_notes)
        if self.separated:
            notes.append(f"{END_OF_TEXT} separates the stories; {START} … {END} replace it.")
        elif self.end_of_text.counts:
            notes.append(f"{END_OF_TEXT} is trained on as text: {self.end_of_text}.")
        if self.near_markers.counts:
            notes.append(
                f"Near misses of the markers are trained on as text: {self.near_markers}; "
                f"fix_markers=True (--fix-markers) repairs what is plain."
            )
        if self.open_titles.counts:
            notes.append(
                f"Titles without {TITLE_END} are no titles for the model: {self.open_titles}; "
                f"fix_markers=True (--fix-markers) closes them at the end of their line."
            )
        if self.fixed.counts:
            notes.append(f"fix_markers replaced near misses of the markers: {self.fixed}.")
        if self.ends_added:
            notes.append(f"fix_markers put {END} after stories without it: {self.ends_added}.")
        if self.html.counts:
            notes.append(f"HTML is trained on as text: {self.html}.")
        if self.empty_stories:
            notes.append(f"Stories without text are left out: {self.empty_stories}.")
        return notes


def check_text(
    blocks: Iterable[TextBlock], report: CorpusReport, fix_markers: bool = False
) -> Iterator[str]:
    """Yield the text of `blocks`; add to `report` what looks like a mistake.

    fix_markers: replace misspelt markers whose meaning is plain, and close titles that are never
    closed at the end of their line.
    """
    checker = _Checker(report, fix_markers)
    for block in whole_lines(blocks):
        yield checker.check(block)
    checker.end()


def whole_lines(blocks: Iterable[TextBlock]) -> Iterator[TextBlock]:
    """The same text in blocks that end with a line, so that no marker is split."""
    rest = TextBlock("", None, "")
    for block in blocks:
        if block.line is None or block.source != rest.source or rest.line is None:
            if rest.text:
                yield rest
            rest = block
        else:
            rest = rest._replace(text=rest.text + block.text)
        if rest.line is None:
            continue
        end = rest.text.rfind("\n") + 1
        # A title may continue on the next line.
        title = rest.text.rfind(TITLE, max(0, end - LONGEST_MATCH), end)
        end = rest.text.rfind("\n", 0, title) + 1 if title >= 0 else end
        if not end and len(rest.text) > LONGEST_LINE:
            tail = rest.text[-LONGEST_MATCH:]
            suspect = re.search(r"[<＜&|]", tail)
            end = len(rest.text) - (len(tail) - suspect.start() if suspect else 0)
        if end:
            yield rest._replace(text=rest.text[:end])
            line = rest.line + rest.text.count("\n", 0, end)
            rest = TextBlock(rest.text[end:], line, rest.source)
    if rest.text:
        yield rest


class _Checker:
    """Checks blocks one after another; it remembers a title that is still open."""

    def __init__(self, report: CorpusReport, fix_markers: bool):
        self.report = report
        self.fix_markers = fix_markers
        self.open_title: tuple[TextBlock, int] | None = None

    def check(self, block: TextBlock) -> str:
        """Count what is in `block`, and return its text, repaired if that is wanted."""
        text = block.text
        without_markers = ANY_MARKER.sub("", text)
        if any(character in without_markers for character in "<|&＜"):
            self.count_html(block)
            text = NEAR_MARKER.sub(lambda match: self.near_marker(match, block), text)
        if TITLE in text or self.open_title is not None:
            text = self.check_titles(block._replace(text=text))
        return text

    def count_html(self, block: TextBlock) -> None:
        for match in HTML.finditer(block.text):
            form = match[0]
            if form.startswith("&") and form[1] != "#" and form[1:] not in html.entities.html5:
                continue
            if form.startswith("<"):
                form = re.match(r"</?\w+", form)[0] + ">"
            self.report.html.add(form, block, match.start())

    def near_marker(self, match: re.Match, block: TextBlock) -> str:
        """What replaces a near miss of a marker: itself, unless it is to be repaired."""
        form = match[0]
        if form in MARKERS:
            return form
        if form.lower() == END_OF_TEXT:
            self.report.end_of_text.add(form, block, match.start())
            return form
        marker = plain_marker(match)
        if self.fix_markers and marker is not None:
            self.report.fixed.add(form, block, match.start())
            return marker
        self.report.near_markers.add(form, block, match.start())
        return form

    def check_titles(self, block: TextBlock) -> str:
        """Find titles that are never closed, and close them if that is wanted."""
        text = block.text
        closings = []  # (position, end, what stands there instead)
        for match in ANY_MARKER.finditer(text):
            if self.open_title is not None and match[0] != TITLE_END:
                closes_it = self.closes_title(block, match)
                closings += self.close_title(block, match)
                if closes_it:
                    continue
            if match[0] == TITLE:
                self.open_title = (block, match.start())
            else:
                self.open_title = None
        if self.fix_markers and self.open_title is not None and self.open_title[0] is block:
            closings += self.close_title(block, None)
        for start, end, marker in reversed(closings):
            text = text[:start] + marker + text[end:]
        return text

    def closes_title(self, block: TextBlock, match: re.Match) -> bool:
        """Whether `match` is a second <|title|> in a line, which is meant to close the first."""
        where, start = self.open_title
        content = block.text[start + len(TITLE) : match.start()]
        return (
            match[0] == TITLE and where is block and "\n" not in content and bool(content.strip())
        )

    def close_title(self, block: TextBlock, match: re.Match | None) -> list[tuple[int, int, str]]:
        """Count the open title, which is never closed, and return its repair, if any.

        match: the marker that stands where the title's end should be; None: the block's end.
        """
        where, start = self.open_title
        limit = len(block.text) if match is None else match.start()
        line_end = block.text.find("\n", start, limit)
        end = limit if line_end < 0 else line_end
        has_content = where is block and bool(block.text[start + len(TITLE) : end].strip())
        closes_it = match is not None and self.closes_title(block, match)
        self.open_title = None
        if not self.fix_markers or not has_content:
            self.report.open_titles.add(TITLE, where, start)
            return []
        self.report.fixed.add(f"{TITLE} never closed", where, start)
        return [(end, match.end() if closes_it else end, TITLE_END)]

    def end(self) -> None:
        """The corpus has ended: a title that is still open is never closed."""
        if self.open_title is not None:
            self.report.open_titles.add(TITLE, *self.open_title)


def plain_marker(match: re.Match) -> str | None:
    """The marker that a near miss plainly means, or None."""
    kind = next(name for name, value in match.groupdict().items() if value is not None)
    closing = "/" in match[0] or "\\" in match[0]
    if kind.startswith("end"):
        return END
    if kind.startswith("title"):
        return TITLE_END if closing else TITLE
    return None if closing else START
