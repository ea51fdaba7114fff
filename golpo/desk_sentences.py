"""The writer's desk: the sentences that it sends to its pages, in English and in Bengali.

The English sentence is the key; {name} in it stands for a value. Errors from elsewhere that are
not in the table stay English.
"""

from golpo.translations import BENGALI, check_language

SENTENCES = {
    "the page asks for {name!r}, which the desk does not know": (
        "পাতাটি {name!r} চাইছে, যা লেখার টেবিল চেনে না"
    ),
    "the model is at work; press Stop first": "মডেল এখন কাজ করছে; আগে ‘থামুন’ চাপুন",
    "another page has changed the story; this page now shows that": (
        "অন্য একটি পাতা গল্পটি বদলেছে; এই পাতায় এখন সেটিই দেখা যাচ্ছে"
    ),
    "the model has written nothing yet that could be written again": (
        "মডেল এখনও এমন কিছু লেখেনি যা আবার লেখা যায়"
    ),
    "there is no way {number!r} to take; press Three ways on": (
        "{number!r} নম্বরের কোনো পথ নেই; ‘তিনটি পথ’ চাপুন"
    ),
    "the text has changed since these ways on were written; undo that, or write others": (
        "এই পথগুলো লেখার পর গল্প বদলেছে; সেই বদল ফিরিয়ে নিন, বা নতুন পথ লেখান"
    ),
    "one of these ways is noted as liked already; write others to choose": (
        "এই পথগুলোর একটি আগেই পছন্দ করা হয়েছে; বাছার জন্য নতুন পথ লেখান"
    ),
    "{old!r} no longer stands there; click the word once more": (
        "{old!r} আর সেখানে নেই; শব্দটিতে আবার ক্লিক করুন"
    ),
    "the page sets {name!r}, which the desk does not have": (
        "পাতাটি {name!r} বদলাতে চাইছে, যা লেখার টেবিলে নেই"
    ),
    "a preset of your own cannot be called {name!r}; give another name": (
        "আপনার সেটিংয়ের নাম {name!r} হতে পারে না; অন্য নাম দিন"
    ),
    "the number of beams is {value!r}; it must be one of {beams}": (
        "বিমের সংখ্যা {value!r}; হতে হবে এর একটি: {beams}"
    ),
    "there is no slider {name!r}": "{name!r} নামের কোনো সেটিং নেই",
    "{label} is {value!r}; it must be a number from {low} to {high}": (
        "{label} এখন {value!r}; হতে হবে {low} থেকে {high} এর মধ্যে একটি সংখ্যা"
    ),
    "Your presets cannot be read: {error}": "আপনার সেটিংগুলো পড়া যাচ্ছে না: {error}",
    "Not used of {file}: {faults}.": "{file} থেকে নেওয়া হয়নি: {faults}।",
    "{file} is damaged; it is now {free}.": "{file} নষ্ট; এখন তার নাম {free}।",
    "nothing has been learned yet; press Learn from my choices": (
        "এখনও কিছু শেখা হয়নি; ‘আমার বাছাই থেকে শেখান’ চাপুন"
    ),
    "{file} cannot be read: {error}": "{file} পড়া যাচ্ছে না: {error}",
    "learning: {share}, {seconds} s left; Stop saves nothing": (
        "শিখছে: {share}, আরও {seconds} সেকেন্ড; থামালে কিছুই রাখা হবে না"
    ),
    "Learning was stopped; nothing was saved.": "শেখা থামানো হয়েছে; কিছুই রাখা হয়নি।",
    "Another studio has changed this story, too. Both are on the shelf; this page goes on with its "
    "own.": ("অন্য একটি স্টুডিও এই গল্পটি বদলেছে। দুটিই তাকে আছে; এই পাতা নিজেরটি নিয়ে এগোবে।"),
    "The story is not kept as a file: {error}": "গল্পটি ফাইলে রাখা যাচ্ছে না: {error}",
    "The shelf cannot be read: {error}": "তাক পড়া যাচ্ছে না: {error}",
    "the story is not kept ({trouble}); make room, or export or copy it and then clear its text "
    "and title": ("গল্পটি রাখা হয়নি ({trouble}); জায়গা খালি করুন, বা কপি করে মুছে দিন"),
    "Untitled": "শিরোনামহীন",
    "A model of {size} M parameters": "{size} মিলিয়ন প্যারামিটারের মডেল",
    # What golpo/books.py and golpo/tastes.py say.
    "there is no story to export; write one first": "ফাইলে নেওয়ার মতো গল্প নেই; আগে একটি লিখুন",
    "Learned from {choices} in {seconds} s.": "{number}টি বাছাই থেকে {seconds} সেকেন্ডে শিখেছে।",
    "Of {choices} kept aside, the plain model finds the liked story the likeliest in {before}; "
    "what was learned points to it in {after}.": (
        "আলাদা রাখা {number}টি বাছাইয়ের মধ্যে আগের মডেল {before}টিতে পছন্দের গল্প এগিয়ে রাখে; "
        "যা শিখেছে, তা {after}টিতে।"
    ),
    "Left out: {choices} that did not fit the model.": ("বাদ: {number}টি বাছাই, যা মডেলে ধরে না।"),
    "Loss on stories of the corpus: {before} before, {after} after (nats per token; lower is "
    "better).": ("শেখার গল্পে ভুলের মাপ: আগে {before}, পরে {after} (প্রতি টোকেনে ন্যাট; কম ভালো)।"),
    "Learning ended early, so that the model stays close to the plain one.": (
        "শেখা আগেই শেষ হয়েছে, যাতে মডেল আগেরটির কাছাকাছি থাকে।"
    ),
}


class Term(str):
    """A value in a sentence that is a text of the page itself, and so is translated, too."""


class Refusal(ValueError):
    """What the desk does not do, as a sentence of `SENTENCES` and its values."""

    def __init__(self, sentence: str, **values):
        super().__init__(say_in("en", sentence, **values))
        self.sentence = sentence
        self.values = values


def say_in(language: str, sentence: str, **values) -> str:
    """A sentence with its values in `language`. Raises ValueError for an unknown language."""
    check_language(language)
    if language == "bn":
        sentence = SENTENCES.get(sentence, sentence)
        values = {
            name: BENGALI.get(value, value) if isinstance(value, Term) else value
            for name, value in values.items()
        }
    return sentence.format(**values)


def error_in(language: str, error: Exception) -> str:
    """An error as one sentence in `language`, as far as the table has it."""
    if isinstance(error, Refusal):
        return say_in(language, error.sentence, **error.values)
    text = str(error) or type(error).__name__
    return SENTENCES.get(text, text) if language == "bn" else text
