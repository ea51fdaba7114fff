"""The studio: the writer's desk as a widget, in JupyterLab, Colab and Voilà."""

from pathlib import Path

import tiktoken

from golpo.desk import Desk
from golpo.desk_inbox import Inbox
from golpo.desk_sentences import say_in
from golpo.inference import describe_checkpoint
from golpo.translations import page_labels
from golpo_utils import GPTModel

FOLDER = Path(__file__).parent
SCRIPTS = [FOLDER / name for name in ("desk_text.js", "desk_controls.js", "desk.js")]


def make_widget_class():
    """The class of the widget; anywidget is imported only where a page is made."""
    import anywidget
    import traitlets

    class StudioWidget(anywidget.AnyWidget):
        """A page that shows a `Desk`. Messages go both ways; of the traits it has only `labels`."""

        labels = traitlets.Dict().tag(sync=True)  # English text → the page's language

        _esm = "\n".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
        _css = FOLDER / "desk.css"

        def __init__(self, model, tokenizer, output_dir, speaker, language):
            super().__init__(labels=page_labels(language))
            self.desk = Desk(model, tokenizer, output_dir, speaker, self.send, language)
            inbox = Inbox(self.desk.receive)
            self.on_msg(lambda _, message, buffers: inbox.receive(message))

    return StudioWidget


def story_studio(
    model: GPTModel,
    tokenizer: tiktoken.Encoding,
    output_dir: str | Path = "output",
    *,
    about: dict | None = None,
    language: str = "en",
):
    """A page for writing stories with the model → a widget (ipywidgets 7.7 or 8).

    Stories are kept as files in `output_dir`/stories as they are written.
    about: what `load_storyteller` returns about the checkpoint; the page then names it.
    language: of the page's own words, "en" or "bn" (Bengali). Raises ValueError for another.
    """
    size = f"{model.parameter_count() / 1e6:.1f}"
    speaker = say_in(language, "A model of {size} M parameters", size=size)
    if about:
        speaker += f": {describe_checkpoint(about)}"
    return make_widget_class()(model, tokenizer, output_dir, speaker, language)
