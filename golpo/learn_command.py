"""The command learn: trains an adapter on the choices that were made in the studio."""

from dataclasses import dataclass

from golpo.paths import DEFAULT_CHECKPOINT_DIR, DEFAULT_OUTPUT_DIR

VALIDATION_STORIES = 32


@dataclass
class Learn:
    """Learn what its owner likes, from choices made in the studio, and write an adapter."""

    # The folder with choices.jsonl; the adapter gets a folder of its own there: taste-1, taste-2 …
    folder: str = str(DEFAULT_OUTPUT_DIR)
    # As for `golpo generate`.
    checkpoint: str = str(DEFAULT_CHECKPOINT_DIR)
    # The corpus whose validation stories show what the model loses; None: the one that the
    # checkpoint was trained on, or the bundled one.
    data_path: str | None = None

    def run(self) -> None:
        from golpo.choices import read_choices
        from golpo.console import print_safely
        from golpo.devices import pick_device
        from golpo.inference import load_storyteller
        from golpo.preferences import learn_from_choices

        found = read_choices(self.folder)
        print_safely(found.describe())
        model, tokenizer, about = load_storyteller(self.checkpoint, pick_device())
        learned = learn_from_choices(
            model,
            tokenizer,
            found.choices,
            self.folder,
            on_progress=ProgressLine(),
            val_stories=validation_stories(about, tokenizer, self.data_path),
        )
        place = f"--checkpoint {self.checkpoint!r} --adapter {learned.folder!r}"
        print_safely(f"The adapter is in {learned.folder!r}; use it with golpo generate {place}")


class ProgressLine:
    """Prints the progress whenever another tenth is done."""

    def __init__(self):
        self.tenths = 0

    def __call__(self, progress) -> None:
        from golpo.console import print_safely

        if int(progress.done * 10) > self.tenths:
            self.tenths = int(progress.done * 10)
            print_safely(str(progress))


def validation_stories(about: dict, tokenizer, data_path: str | None = None) -> list[str]:
    """Some stories that the checkpoint was not trained on; about: as `load_storyteller` returns it.

    data_path: their corpus; by default the checkpoint's own, or the bundled one. Without a
    corpus to read, there are none.
    """
    import itertools

    from golpo.console import describe_error, print_safely
    from golpo.evaluation import load_checkpoint_corpus
    from golpo.vocabulary import decode_stories

    try:
        corpus = load_checkpoint_corpus(about, data_path, tokenizer)
    except (OSError, ValueError) as error:
        if data_path is not None:
            raise
        print_safely(f"Note: the loss is not measured ({describe_error(error)}).")
        return []
    return list(itertools.islice(decode_stories(corpus.val_ids, tokenizer), VALIDATION_STORIES))
