"""Brings a corpus to local disk, by name, URL or path, in the project's story format."""

import hashlib
import os
import queue
import re
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from golpo.console import print_safely
from golpo.corpus import ReadOptions, read_blocks, read_stories
from golpo.corpus_checks import CorpusReport
from golpo.encodings import MAX_UNPACKED_RATIO, MAX_UNPACKED_SIZE
from golpo.file_kinds import kind_of, kind_of_path
from golpo.files import make_folder
from golpo.paths import DEFAULT_DATA_DIR
from golpo.titles import add_titles, is_untitled

# TinyStories: Eldan and Li, 2023, https://arxiv.org/abs/2305.07759; licence CDLA-Sharing-1.0.
TINYSTORIES = (
    "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-"
)
CORPORA = {
    "tinystories-small": TINYSTORIES + "valid.txt",
    "tinystories": TINYSTORIES + "train.txt",
}
CHUNK_SIZE = 1 << 14  # bytes; a download that brings fewer in `timeout` seconds has stopped
LONGEST_STEM = 80  # bytes of a file's name, without what is added to it
NO_TEXT_TYPES = ("image/", "audio/", "video/", "font/", "text/html", "application/xhtml")


def fetch_corpus(
    source: str | Path,
    folder: str | Path | None = None,
    timeout: float = 30,
    *,
    encoding: str | None = None,
    titles: bool = True,
) -> Path:
    """Bring a corpus to local disk in the story format and return its path.

    source: a name in CORPORA, a URL, or the path of a file or folder (on Google Drive, where
    reading is slow). folder: where to put it; None means the project's data folder. A file that
    is there already is not fetched again, and it gets its name only when it is complete. timeout:
    seconds without progress. encoding: of text that is not UTF-8. titles: if most stories have no
    title, give them one (see golpo/titles.py). Prints what was noticed about the files. Raises
    FileNotFoundError, ConnectionError, or what `read_file` raises.
    """
    folder = Path(folder or DEFAULT_DATA_DIR)
    source = CORPORA.get(str(source), str(source))
    is_url = source.startswith(("http://", "https://"))
    if not is_url and kind_of_path(source) is None:
        names = ", ".join(CORPORA)
        raise FileNotFoundError(
            f"there is no corpus at {source!r}; give a URL, a path, or one of {names}"
        )
    destination = folder / local_name(source, encoding)
    if destination.exists():
        if is_url or destination.stat().st_mtime >= last_change(Path(source)):
            return destination
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        local = Path(source)
        if is_url:
            local = download_file(source, Path(work) / url_name(source), timeout)
        report = CorpusReport()
        with open(Path(work) / "corpus", "w", encoding="utf-8", newline="\n") as out:
            try:
                out.writelines(read_blocks(local, ReadOptions(encoding), report))
            except ValueError as error:
                raise ValueError(str(error).replace(str(local), source)) from error
        if titles:
            title_stories(Path(work) / "corpus")
        os.replace(Path(work) / "corpus", destination)
    # What the text itself lacks, `load_corpus` says.
    for note in CorpusReport(report.source_notes, separated=report.separated).notes():
        print_safely(note.replace(str(local), source))
    return destination


def title_stories(path: Path) -> None:
    """Give the stories of a corpus titles, in place, if most have none; say so."""

    def stories() -> Iterator[str]:
        return read_stories(path)

    if not is_untitled(stories()):
        return
    print_safely(
        "Most stories have no title, so each gets one by a rule, such as 'Mia and the Kite': a "
        "story can then be asked for by its title. Without it: titles=False."
    )
    titled = path.with_name("titled")
    with open(titled, "w", encoding="utf-8", newline="\n") as out:
        out.writelines(add_titles(stories))
    os.replace(titled, path)


def last_change(path: Path) -> float:
    """When a file was changed last, or of a folder the newest of its files."""
    if not path.is_dir():
        return path.stat().st_mtime
    with os.scandir(path) as entries:
        times = [entry.stat().st_mtime for entry in entries]
    return max([path.stat().st_mtime, *times])


def url_name(url: str) -> str:
    """A short file name for what is at `url`, with its last suffixes."""
    name = Path(urllib.parse.urlsplit(url).path).name
    return "download" + "".join(Path(name).suffixes[-2:])[-20:]


def local_name(source: str, encoding: str | None) -> str:
    """The name of a source's local copy: a hash, its own name (shortened), and .txt."""
    key = source if encoding is None else f"{source} {encoding}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    stem = Path(source.partition("?")[0]).stem
    stem = re.sub(r'[\x00-\x1f<>:"|*\\]', "_", stem)
    stem = stem.encode()[:LONGEST_STEM].decode(errors="ignore")
    return f"{digest}-{stem}.txt"


def download_file(url: str, path: Path, timeout: float) -> Path:
    """Write what is at `url` to `path` and return it.

    Raises ConnectionError if it is not complete, brings nothing for `timeout` seconds, or is a web
    page, an error message or a picture.
    """
    import requests
    from tqdm.auto import tqdm

    try:
        answer = requests.get(url, stream=True, timeout=timeout)
        try:
            answer.raise_for_status()
            check_content_type(answer.headers.get("Content-Type", ""))
            progress = tqdm(desc="downloading", unit="B", unit_scale=True, leave=False, delay=1)
            with progress, open(path, "wb") as file:
                for chunk in received_chunks(answer, timeout):
                    file.write(chunk)
                    progress.update(len(chunk))
                    check_size(file.tell(), answer.raw.tell())
        finally:
            # `close` waits for the thread that reads, which may wait for a silent server.
            threading.Thread(target=answer.close, daemon=True).start()
        check_content(path, url)
    except OSError as error:
        raise ConnectionError(
            f"downloading {url} failed: {error}; check address and network, and run again"
        ) from error
    return path


def received_chunks(answer, timeout: float) -> Iterator[bytes]:
    """Yield a response's content. Raises OSError if CHUNK_SIZE bytes take too long.

    The timeout of the socket is not enough: a server that sends a byte now and then never
    reaches it. So another thread reads, and this one counts the seconds.
    """
    chunks: queue.Queue = queue.Queue(maxsize=64)
    abandoned = threading.Event()

    def put(item) -> None:
        while not abandoned.is_set():
            try:
                return chunks.put(item, timeout=0.5)
            except queue.Full:
                continue

    def receive() -> None:
        try:
            for chunk in answer.iter_content(CHUNK_SIZE):
                put(chunk)
                if abandoned.is_set():
                    return
            put(None)
        except Exception as error:
            put(error)

    threading.Thread(target=receive, daemon=True).start()
    try:
        while True:
            started = time.monotonic()
            try:
                item = chunks.get(timeout=timeout + 1)  # the socket's own timeout comes first
            except queue.Empty:
                seconds = time.monotonic() - started
                raise OSError(f"no progress for {seconds:.0f} seconds (timed out)") from None
            if isinstance(item, Exception):
                raise item if isinstance(item, OSError) else OSError(str(item)) from item
            if item is None:
                return
            yield item
    finally:
        abandoned.set()


def check_content_type(content_type: str) -> None:
    """Raise OSError that names what is no text by its Content-Type."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith(("text/html", "application/xhtml")):
        raise OSError(f"it is a web page ({kind}), not a text file")
    if kind.startswith(NO_TEXT_TYPES):
        raise OSError(f"it is {kind}, not a text file")


def check_size(size: int, received: int) -> None:
    """Raise OSError if a compressed answer unpacks to an unreasonable size."""
    if size > max(MAX_UNPACKED_SIZE, MAX_UNPACKED_RATIO * received):
        raise OSError(f"it unpacks to more than {size >> 20} MB, too much for {received} bytes")


def check_content(path: Path, url: str) -> None:
    """Raise OSError if a server sent a web page or an error message, by the content itself."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    kind = kind_of(head, path.name)
    if kind in ("a web page (HTML)", "a JSON document", "an XML document"):
        beginning = " ".join(head[:300].decode("utf-8", errors="replace").split())[:150]
        raise OSError(f"the server sent {kind}, not a text file: {beginning}")
