"""Do stories follow their requests?

    python benchmarks/request_following.py CHECKPOINT... [--data-path FILE] [--requests 100]

For each checkpoint (a folder, a file, or "bundled"): the validation loss on plain stories, and
`measure_requests` over requests of validation stories and recombined ones, each with a hero, two
to four words and a length. --data-path: the corpus of requests for a checkpoint that does not know
its own. The name of this file is not requests.py, since that would hide the package of that name.
"""

import argparse
import functools
import itertools
from collections.abc import Iterator

from machine import print_machine

from golpo.devices import pick_device
from golpo.evaluation import (
    first_stories,
    load_checkpoint_corpus,
    loss_figures,
    write_requested,
)
from golpo.inference import load_storyteller
from golpo.request_facts import CorpusFacts
from golpo.request_measures import draw_requests, measure_requests
from golpo.requests import format_request
from golpo.vocabulary import decode_stories


def measure(checkpoint: str, options: argparse.Namespace) -> dict:
    """The figures of one checkpoint."""
    model, tokenizer, about = load_storyteller(checkpoint, pick_device(), options.which)
    corpus = load_checkpoint_corpus(about, options.data_path, tokenizer)
    sampling = {
        "temperature": options.temperature,
        "top_k": options.top_k,
        "min_p": options.min_p,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
    }
    write = functools.partial(write_requested, model, tokenizer, sampling)
    validation = first_stories(corpus.val_ids, tokenizer)

    def training() -> Iterator[str]:
        return itertools.islice(decode_stories(corpus.train_ids, tokenizer), options.stories)

    figures = {"val_loss": loss_figures(model, corpus, tokenizer)["val_loss"]}
    figures |= measure_requests(write, validation, training, options.requests, options.seed)
    if options.show:
        requests = draw_requests(CorpusFacts(training()), validation, options.show)
        for request, prose in zip(requests, write(requests), strict=True):
            print(f"{format_request(request)}\n{prose}\n")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--which", default="best")
    parser.add_argument("--data-path")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--stories", type=int, default=20_000, help="training stories to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--min-p", type=float, default=0.1)
    parser.add_argument("--max-new-tokens", type=int, default=400)
    parser.add_argument("--show", type=int, default=0, help="print so many stories, too")
    options = parser.parse_args()
    print_machine()
    for checkpoint in options.checkpoints:
        print(f"{checkpoint}: temperature {options.temperature}, top-k {options.top_k}, ", end="")
        print(f"min-p {options.min_p}, {options.requests} requests")
        for name, figure in measure(checkpoint, options).items():
            print(f"  {name:28} {figure:.3f}")


if __name__ == "__main__":
    main()
