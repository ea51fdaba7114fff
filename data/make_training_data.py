"""Make data/training_data.txt: a small library of children's stories.

    python data/make_training_data.py
    python data/make_training_data.py --stories 500 --output my_stories.txt

The stories come from a story grammar written for this project: the plots in data/plots/, the
people and things in story_world.py, the engine in story_grammar.py. No text is copied from any
book or web page. The same seed always gives the same file, byte for byte.
Licence: MIT, like the rest of the project. Only the standard library is used.
"""

import argparse
from collections import Counter
from pathlib import Path

from story_grammar import check_stories, format_corpus, write_stories


def main() -> None:
    """Read the options, write the stories, check them and write the file."""
    parser = argparse.ArgumentParser(description="Make the story corpus.")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same stories")
    parser.add_argument("--stories", type=int, default=5700, help="how many stories")
    parser.add_argument(
        "--output",
        type=Path,
        help="where to write them",
        default=Path(__file__).resolve().parent / "training_data.txt",
    )
    options = parser.parse_args()

    stories = write_stories(options.stories, options.seed)
    check_stories(stories)
    corpus = format_corpus(stories).encode("utf-8")
    options.output.write_bytes(corpus)  # bytes, so that Windows keeps the "\n"

    print(f"{len(stories)} stories, {len(corpus)} bytes, in {options.output}")
    print(f"{len({title for _, title, _, _ in stories})} different titles")
    for plot, count in sorted(Counter(plot for plot, _, _, _ in stories).items()):
        print(f"{count:5} {plot}")


if __name__ == "__main__":
    main()
