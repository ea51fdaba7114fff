"""The writer's desk: the story is kept as it is written, and the shelf shows all of them."""

import re
import threading

from golpo.books import Chapter, export_stories
from golpo.desk_sentences import Refusal
from golpo.manuscript import Manuscript, Version
from golpo.shelf import Shelf, ShelfStory, new_name
from golpo_utils import check_kind

MOST_SHOWN = 200
# The model writes on one thread and a page's messages come on another, and two studios may have
# the same story.
LOCK = threading.RLock()


class DeskShelf:
    """The story that is written, as a file, and what a page can do with the others.

    kept: the version and the note that the file had when this desk wrote or read it last.
    """

    def __init__(self, desk, output_dir):
        self.desk = desk
        self.shelf = Shelf(output_dir)
        self.story = ShelfStory()
        self.kept: tuple[Version, str] | None = None
        self.trouble = ""  # why the story could not be kept last
        self.words = ""  # that are searched for
        self.actions = {
            "search": self.search,
            "open": self.open,
            "new": self.new,
            "star": self.star,
            "delete": self.delete,
            "export": self.export,
        }

    def keep(self, list_again: bool = False) -> bool:
        """Write the story's file if the story has changed; return whether all of it is kept.

        A disk that refuses is named once and stops nobody.
        """
        with LOCK:
            if self.is_empty() and not self.is_kept():
                return True
            now = self.desk.manuscript.now
            note = self.desk.form.values["note"]
            if (now, note) != self.kept and not self.write(now, note):
                return False
            if list_again:
                self.search(self.words)
            return True

    def write(self, now: Version, note: str) -> bool:
        """Write the story's file; return whether the disk took it."""
        found = self.found()
        if found and self.differs(found):
            self.story.name = new_name()
            self.desk.say(
                "Another studio has changed this story, too. Both are on the shelf; this page goes "
                "on with its own."
            )
        elif found:
            self.story.starred = found.starred
        self.story.keep(now, note)
        try:
            self.shelf.save(self.story)
        except OSError as error:
            if str(error) != self.trouble:
                self.desk.say("The story is not kept as a file: {error}", error=error)
            self.trouble = str(error)
            return False
        self.trouble = ""
        self.kept = (now, note)
        return True

    def found(self) -> ShelfStory | None:
        """The story as its file has it; None if there is no file, or a damaged one."""
        try:
            return self.shelf.read(self.story.name)
        except (OSError, ValueError):
            return None

    def differs(self, found: ShelfStory) -> bool:
        """Whether a file holds something else than this desk wrote or read last."""
        if self.kept is None:
            return False
        version, note = self.kept
        return (version.title, version.text, note) != (found.title, found.text, found.note)

    def is_empty(self) -> bool:
        """Whether the story that is shown has neither text nor title."""
        now = self.desk.manuscript.now
        return not now.text.strip() and not now.title.strip()

    def is_kept(self) -> bool:
        """Whether the story has a file."""
        return self.shelf.path(self.story.name).is_file()

    def search(self, words: str = "") -> None:
        """List the stories that have these words."""
        check_kind("what is searched for", words, str, "text")
        self.words = words
        try:
            found = self.shelf.search(words)
        except OSError as error:
            self.desk.say("The shelf cannot be read: {error}", error=error)
            return
        rows = [self.row(story) for story in found[:MOST_SHOWN]]
        more = len(found) - len(rows)
        figures = {"more": more, "skipped": self.shelf.skipped, "open": self.story.name}
        self.desk.pages.show_shelf(rows, figures)

    def row(self, story: ShelfStory) -> dict:
        """A story as a page lists it: its date to the minute.

        The words of the story that is shown are None: the page counts those itself, at any moment.
        """
        row = story.summary()
        row["date"] = re.sub(r":\d\d(?=\+00:00$)", "", row["date"])
        if story.name == self.story.name:
            row["words"] = None
        if not story.title.strip() and not story.text.strip():
            row["title"] = self.desk.sentence("Untitled")
        return row

    def leave(self) -> None:
        """Keep the story, for another one takes its place. Raises ValueError if that fails."""
        if not self.keep() and not self.is_empty():
            raise Refusal(
                "the story is not kept ({trouble}); make room, or export or copy it and then clear "
                "its text and title",
                trouble=self.trouble,
            )

    def open(self, name: str) -> None:
        """Show a story of the shelf, and write on in its file."""
        with LOCK:
            self.leave()
            story = self.shelf.read(name)
            if name != self.story.name or self.differs(story):
                self.change(story)
            self.search(self.words)

    def change(self, story: ShelfStory) -> None:
        """Show a story as its file has it."""
        manuscript = Manuscript()
        manuscript.versions = [story.version()]
        manuscript.runs = max((p.run for p in manuscript.now.passages), default=0)
        self.story = story
        self.kept = (manuscript.now, story.note)
        self.desk.form.set({"note": story.note})
        self.desk.change(manuscript)

    def begin(self) -> None:
        """Show an empty story, which has no file yet."""
        self.story = ShelfStory()
        self.kept = None
        self.desk.form.set({"note": ""})
        self.desk.change(Manuscript())
        self.search(self.words)

    def new(self) -> None:
        """Begin an empty story."""
        with LOCK:
            self.leave()
            self.begin()

    def star(self, name: str, starred: bool) -> None:
        """Give a story a star, or take it away."""
        with LOCK:
            self.shelf.star(name, starred)
            self.search(self.words)

    def delete(self, name: str) -> None:
        """Delete a story's file; if it is the one that is shown, an empty one takes its place."""
        with LOCK:
            self.shelf.delete(name)
            if name == self.story.name:
                self.begin()
            else:
                self.search(self.words)

    def export(self, kind: str, everything: bool = False) -> None:
        """Send a file with the story that is shown, or with all of the shelf, oldest first."""
        now = self.desk.manuscript.now
        chapters = [Chapter(now.title, now.text)] if now.text.strip() else []
        if everything:
            found = reversed(self.shelf.stories())
            chapters = [Chapter(story.title, story.text) for story in found]
        name, media_type, content = export_stories(chapters, kind)
        self.desk.send({"ev": "file", "name": name, "type": media_type}, [content])
