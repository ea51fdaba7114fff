"""Finds stories that occur more than once, so that copies stay on one side of the split.

Equal stories are those whose prose is equal after folding case and white space. Near copies are
found by MinHash over their three-word shingles: Broder, 1997, "On the resemblance and containment
of documents". Only hashes are kept, and those on disk, so memory stays small for any corpus.
"""

import hashlib
import re
import tempfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golpo.stories import split_story

SHINGLE_WORDS = 3
SMALLEST_STORY = 16  # shingles; shorter stories are compared for equality only
BANDS = 16
ROWS = 4  # values of a band; two stories are compared if all values of a band agree
MIN_SIMILARITY = 0.78  # estimated share of common shingles from which stories are near copies
BATCH = 1 << 17  # shingles that are hashed at once
# A word; in scripts that are written without spaces, a character.
WORD = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+"
)
_RANDOM = np.random.default_rng(20230527)  # any fixed numbers: they only spread the hashes
MULTIPLIERS = _RANDOM.integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) * 2 + 1
MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Copies:
    """Which stories are copies of each other."""

    groups: np.ndarray  # (stories,): the index of the first story of each story's group
    equal: int  # stories that are equal to an earlier one
    near: int  # other stories that are nearly equal to another one

    def any(self) -> bool:
        return self.equal + self.near > 0

    def all_alike(self) -> bool:
        """Whether all stories are copies of one, so that no split can separate them."""
        return bool((self.groups == 0).all())


def find_copies(stories: Iterable[str], work_dir: str | Path | None = None) -> Copies:
    """Find the copies in a corpus. work_dir: for temporary files; None: the system's folder."""
    with tempfile.TemporaryDirectory(dir=work_dir) as work:
        with _Sketches(Path(work)) as sketches:
            for story in stories:
                sketches.add(split_story(story)[1])
            sketches.write_batch()
            count = sketches.count
            groups = join_pairs(np.arange(count), pairs_of_equal(sketches.read(BANDS)))
            equal = int((groups != np.arange(count)).sum())
            groups = join_pairs(groups, similar_pairs(sketches))
    near = int((groups != np.arange(count)).sum()) - equal
    return Copies(groups, equal, near)


class _Sketches:
    """The hashes of all stories in files: one for each band, one for the whole text."""

    def __init__(self, folder: Path):
        self.count = 0
        self.files = [open(folder / f"{number}.u64", "w+b") for number in range(BANDS + 1)]
        self.shingles: list[np.ndarray] = []  # of the stories of a batch
        self.batch_size = 0

    def add(self, prose: str) -> None:
        """Add a story."""
        folded = prose.casefold()
        words = WORD.findall(folded)
        text = " ".join(folded.split()).encode()
        self.files[BANDS].write(hashlib.blake2b(text, digest_size=8).digest())
        self.shingles.append(shingle_hashes(words))
        self.batch_size += len(self.shingles[-1])
        self.count += 1
        if self.batch_size > BATCH:
            self.write_batch()

    def write_batch(self) -> None:
        """Compute and write the sketches of the stories that were added last."""
        if not self.shingles:
            return
        bands = sketch(self.shingles)  # (stories, BANDS)
        for number in range(BANDS):
            self.files[number].write(np.ascontiguousarray(bands[:, number]).tobytes())
        self.shingles = []
        self.batch_size = 0

    def read(self, number: int) -> np.ndarray:
        """One file's hashes, (stories,) uint64."""
        file = self.files[number]
        file.flush()
        file.seek(0)
        return np.frombuffer(file.read(), dtype=np.uint64)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self.files:
            file.close()


def mix(values: np.ndarray) -> np.ndarray:
    """Spread the bits of uint64 values evenly (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def shingle_hashes(words: list[str]) -> np.ndarray:
    """A hash for each run of SHINGLE_WORDS words, (shingles,) uint64; none for a short text."""
    if len(words) < SMALLEST_STORY + SHINGLE_WORDS - 1:
        return np.empty(0, dtype=np.uint64)
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words), np.uint64, len(words))
    count = len(words) - SHINGLE_WORDS + 1
    shingles = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        shingles = mix(shingles * MIX + hashes[offset : offset + count])
    return shingles


def sketch(shingles: list[np.ndarray]) -> np.ndarray:
    """MinHash values of several stories, (stories, BANDS) uint64: ROWS values of 16 bits each.

    A story without shingles gets zeros.
    """
    lengths = np.array([len(one) for one in shingles])
    filled = np.flatnonzero(lengths)
    values = np.zeros((len(shingles), BANDS * ROWS), dtype=np.uint16)
    if len(filled):
        joined = np.concatenate(shingles)
        starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
        for column, multiplier in enumerate(MULTIPLIERS):
            # Only the smallest hash of a story is kept, and of that 16 bits.
            smallest = np.minimum.reduceat(joined * multiplier, starts)
            values[filled, column] = (mix(smallest) >> np.uint64(48)).astype(np.uint16)
    return values.view(np.uint64)


def pairs_of_equal(hashes: np.ndarray) -> np.ndarray:
    """Pairs of indices with equal hashes, (pairs, 2): neighbours, and each with the first."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    is_equal = ordered[1:] == ordered[:-1]
    begins = np.flatnonzero(np.concatenate([[True], ~is_equal]))
    first = begins[np.cumsum(np.concatenate([[True], ~is_equal])) - 1]  # (stories,)
    places = np.flatnonzero(is_equal) + 1
    neighbours = np.stack([order[places - 1], order[places]], axis=1)
    with_first = np.stack([order[first[places]], order[places]], axis=1)
    return np.unique(np.concatenate([neighbours, with_first]), axis=0)


def similar_pairs(sketches: _Sketches) -> np.ndarray:
    """Pairs of stories whose sketches agree in at least MIN_SIMILARITY of their values."""
    has_sketch = np.zeros(sketches.count, dtype=bool)
    pairs = np.empty((0, 2), dtype=np.int64)
    for number in range(BANDS):
        hashes = sketches.read(number)
        has_sketch |= hashes != 0
        found = pairs_of_equal(hashes)
        found = found[hashes[found[:, 0]] != 0]
        pairs = np.unique(np.concatenate([pairs, found]), axis=0)
    agreeing = np.zeros(len(pairs), dtype=np.int64)
    for number in range(BANDS):
        values = sketches.read(number).view(np.uint16).reshape(-1, ROWS)
        agreeing += (values[pairs[:, 0]] == values[pairs[:, 1]]).sum(axis=1)
    return pairs[agreeing >= MIN_SIMILARITY * BANDS * ROWS]


def join_pairs(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Join the groups of each pair; a group's name is its smallest index. (stories,)"""
    groups = groups.copy()
    while True:
        first = groups[pairs[:, 0]]
        second = groups[pairs[:, 1]]
        if np.array_equal(first, second):
            return groups
        smaller = np.minimum(first, second)
        np.minimum.at(groups, first, smaller)
        np.minimum.at(groups, second, smaller)
        while not np.array_equal(groups, groups[groups]):
            groups = groups[groups]


def choose_validation(copies: Copies, seed: int, fraction: float) -> np.ndarray:
    """Which stories are for validation, (stories,) bool; at least one and never all.

    Without copies these are the first of the stories in an order that the seed decides. Of
    copies, all or none are: groups are taken in the same order as long as they fit. If all
    stories are copies of each other, they are split as if they were not.
    """
    count = len(copies.groups)
    order = np.random.default_rng(seed).permutation(count)
    wanted = min(max(1, round(fraction * count)), count - 1)
    chosen = np.zeros(count, dtype=bool)
    sizes = np.bincount(copies.groups, minlength=count)
    if not copies.any() or copies.all_alike():
        chosen[order[:wanted]] = True
        return chosen
    chosen_groups = np.zeros(count, dtype=bool)
    left = wanted
    for group in copies.groups[order].tolist():
        if not chosen_groups[group] and sizes[group] <= left:
            chosen_groups[group] = True
            left -= sizes[group]
            if left == 0:
                break
    if left == wanted:  # not one group is small enough
        smallest = sizes[copies.groups[order]].argmin()
        chosen_groups[copies.groups[order[smallest]]] = True
    return chosen_groups[copies.groups]
