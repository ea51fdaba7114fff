"""The writer's desk: learning from the choices that were made, and how much it counts."""

import asyncio

from golpo.choices import CHOICES_FILE, read_choices
from golpo.desk_sentences import Refusal
from golpo.files import as_path
from golpo.lora import (
    MAX_STRENGTH,
    adapter_names,
    load_adapter,
    remove_adapter,
    set_adapter_strength,
)
from golpo.preferences import LEAST_CHOICES, learn_steps
from golpo.tastes import TASTE, newest_taste
from golpo_utils import check_number

DONE = object()


class Learning:
    """The adapter that was learned from choices. It stands in the model under the name TASTE."""

    def __init__(self, desk, output_dir):
        self.desk = desk
        self.folder = as_path("output_dir", output_dir)
        self.actions = {"learn": self.learn, "strength": self.set_strength}

    @property
    def strength(self) -> float:
        """How much the taste counts: in the model, which several studios may share."""
        model = self.desk.model
        if TASTE not in adapter_names(model):
            return 0.0
        return model.adapters[TASTE].layers()[0].strength

    def show(self) -> None:
        """Send how many choices there are, and how much the taste counts."""
        try:
            choices = len(read_choices(self.folder).choices)
            has_taste = newest_taste(self.folder) is not None
        except OSError as error:
            self.desk.say("{file} cannot be read: {error}", file=CHOICES_FILE, error=error)
            return
        event = {"choices": choices, "least": LEAST_CHOICES, "has_taste": has_taste}
        self.desk.send({"ev": "taste", **event, "strength": self.strength, "most": MAX_STRENGTH})

    def set_strength(self, value: float) -> None:
        """Let what was learned count from 0 (not at all) to 1.5; it is loaded when first used."""
        model = self.desk.model
        check_number("the taste's strength", value, 0, MAX_STRENGTH)
        if TASTE not in adapter_names(model):
            folder = newest_taste(self.folder)
            if folder is None:
                raise Refusal("nothing has been learned yet; press Learn from my choices")
            load_adapter(model, folder, TASTE)
        set_adapter_strength(model, value, TASTE)

    def learn(self) -> None:
        """Learn from all choices, in the background. It begins with the model without the taste."""
        choices = read_choices(self.folder).choices
        steps = learn_steps(self.desk.model, self.desk.tokenizer, choices, self.folder)
        self.desk.runner.start(self.run(steps), self.show)
        self.desk.show()

    async def run(self, steps) -> None:
        """Take the steps on another thread, so that the page answers; Stop saves nothing."""
        loop = asyncio.get_running_loop()
        learned = None

        def take_step():
            nonlocal learned
            try:
                return next(steps)
            except StopIteration as end:
                learned = end.value
                return DONE

        while not self.desk.runner.stops:
            progress = await loop.run_in_executor(None, take_step)
            if progress is DONE:
                break
            self.desk.say(
                "learning: {share}, {seconds} s left; Stop saves nothing",
                share=f"{progress.done:.0%}",
                seconds=f"{progress.seconds_left:.0f}",
            )
        if learned is None:
            self.desk.say("Learning was stopped; nothing was saved.")
            return
        if TASTE in adapter_names(self.desk.model):
            remove_adapter(self.desk.model, TASTE)
        load_adapter(self.desk.model, learned.folder, TASTE)
        said = [self.desk.sentence(text, **values) for text, values in learned.sentences()]
        self.desk.send({"ev": "message", "text": " ".join(said)})
