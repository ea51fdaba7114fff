"""Every picture: loss curves and the figures of an evaluation, for a light or a dark page."""

import io
import warnings
from pathlib import Path

import numpy as np

from golpo.console import in_notebook, print_safely
from golpo.files import make_folder
from golpo.fonts import font_families
from golpo.metrics import METRICS_FILE, describe_record, is_complete, read_records
from golpo.paths import DEFAULT_CHECKPOINT_DIR

# The figures of an evaluation that are shares of 1: label → name.
SHARES = {
    "reach their end": "ended",
    "have a title": "titled",
    "distinct titles": "distinct_titles",
    "distinct openings": "distinct_openings",
    "repeated 4-grams, median": "repeated_4grams_median",
    "repeated 4-grams, worst": "repeated_4grams_worst",
    "verbatim 8-grams": "verbatim_8grams",
    "last mention of the first name": "names_last",
}


def clear_axes(width: float, height: float):
    """A matplotlib Figure of that size in inches and its axes, without a background."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    axes = figure.subplots()
    axes.set_facecolor("none")
    axes.tick_params(which="both", colors="gray")
    axes.spines[:].set_color("gray")
    return figure, axes


def draw_losses(
    tokens_seen: list[int],
    train_losses: list[float],
    val_losses: list[float],
    scale: str = "linear",
):
    """Training and validation loss over tokens seen → a matplotlib Figure, the best point marked.

    scale: of the loss, "linear" or "log".
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = clear_axes(7, 4)
    best = int(np.argmin(val_losses))
    axes.set_yscale(scale)
    axes.set_xlabel("tokens seen", color="gray")
    axes.xaxis.set_major_formatter(EngFormatter())  # 2 M, not 2e6
    axes.set_ylabel("loss, nats per token", color="gray")
    axes.plot(tokens_seen, train_losses, color="tab:orange", label="training")
    axes.plot(tokens_seen, val_losses, color="tab:blue", label="validation")
    label = f"best: {val_losses[best]:.3f}"
    axes.plot(tokens_seen[best], val_losses[best], "o", color="tab:blue", label=label)
    axes.legend(labelcolor="gray", frameon=False)
    axes.grid(alpha=0.3)
    return figure


def png_bytes(figure) -> bytes:
    """A matplotlib Figure as the content of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # boxes are shown
        figure.savefig(file, dpi=100)
    return file.getvalue()


def plot_losses(
    tokens_seen: list[int],
    train_losses: list[float],
    val_losses: list[float],
    path: str | Path = "loss-plot.png",
    scale: str = "linear",
) -> None:
    """Draw the losses, save the picture at `path`, and show it in a notebook.

    Raises ValueError if there are no losses yet.
    """
    if len(val_losses) == 0:
        raise ValueError("there are no losses to draw yet; train until the first evaluation")
    figure = draw_losses(tokens_seen, train_losses, val_losses, scale)
    make_folder(Path(path).parent)
    figure.savefig(path, dpi=150)
    if in_notebook():
        from IPython.display import Image, display

        display(Image(png_bytes(figure)))


def show_training(
    checkpoint_dir: str | Path = DEFAULT_CHECKPOINT_DIR, scale: str = "linear"
) -> None:
    """Show the training in checkpoint_dir, from its metrics file: also after a page reload.

    Raises FileNotFoundError if there is no record yet.
    """
    path = Path(checkpoint_dir) / METRICS_FILE
    records = [record for record in read_records(path) if is_complete(record)]
    if not records:
        raise FileNotFoundError(
            f"there are no records in {str(path)!r} yet; train until the first evaluation"
        )
    names = ("tokens_seen", "train_loss", "val_loss")
    columns = [[record[name] for record in records] for name in names]
    plot_losses(*columns, path.with_name("loss-plot.png"), scale)
    print_safely(describe_record(records[-1]))


def draw_evaluation(table: dict[str, dict]):
    """The shares among the figures of `evaluate`, side by side: column → figures → a Figure."""
    figure, axes = clear_axes(8, 2.8 + 0.8 * len(table))
    # What does not apply to a script, such as names to one without capitals, is left out.
    shares = {
        label: name
        for label, name in SHARES.items()
        if all(name in figures for figures in table.values())
    }
    places = np.arange(len(shares))
    height = 0.8 / len(table)
    for number, (column, figures) in enumerate(table.items()):
        values = []
        for name in shares.values():
            total = figures["stories"] if name.startswith("distinct") else 1
            values.append(figures[name] / total)
        offset = (number - (len(table) - 1) / 2) * height
        color = "tab:gray" if column == "reference" else f"C{number}"
        bars = axes.barh(places + offset, values, 0.95 * height, color=color, label=column)
        labels = [f"{value:.3f}" for value in values]
        axes.bar_label(bars, labels, padding=3, color="gray", size=8)
    axes.set_yticks(places, shares, color="gray")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    measured = {column: one for column, one in table.items() if "bits_per_byte" in one}
    losses = [f"{column} {one['bits_per_byte']:.3f}" for column, one in measured.items()]
    axes.set_xlabel(f"bits per byte: {', '.join(losses)}", color="gray")
    legend = figure.legend(
        loc="outside upper center", ncols=len(table), labelcolor="gray", frameon=False
    )
    # The names are those of files: a dollar sign in one would begin a formula.
    for text in (*legend.get_texts(), axes.xaxis.label):
        text.set_parse_math(False)
        text.set_family(font_families(list(table)))
    return figure
