"""What the notebooks' pages say, in English and in Bengali.

The English text is the key: `translate("Stop", "bn")` gives "থামুন".
"""

LANGUAGES = ("en", "bn")
FORM = {
    "preset": (
        "size and recipe of the model; auto fits this machine, or the training that is resumed",
        "মডেলের আকার ও শেখার নিয়ম; auto এই যন্ত্রের উপযোগী, অথবা যে শেখা চলছিল সেটির",
    ),
    "corpus": (
        "the stories to learn from; auto takes TinyStories on a GPU, else the bundled ones",
        "যে গল্পগুলো থেকে শিখবে; auto মানে জিপিইউ থাকলে TinyStories, না থাকলে সঙ্গে দেওয়া গল্প",
    ),
    "my_own_corpus": (
        "path or address of your stories, for the corpus 'my own'",
        "আপনার গল্পের ফাইল বা ঠিকানা; corpus হিসেবে 'my own' বেছে নিন",
    ),
    "encoding": (
        "encoding of your file, if it is not UTF-8",
        "ফাইলটি UTF-8 না হলে তার এনকোডিং",
    ),
    "fix_markers": (
        "repair misspelt markers",
        "ভুল বানানের চিহ্ন ঠিক করে নেয়",
    ),
    "add_titles": (
        "give titles to stories that have none",
        "যে গল্পের শিরোনাম নেই তাকে শিরোনাম দেয়",
    ),
    "tokenizer": (
        "own is learned from your stories, in any language; auto is the preset's",
        "own আপনার গল্প থেকে টোকেনাইজার শেখে, যে কোনো ভাষায়; auto মানে preset যা বলে",
    ),
    "num_epochs": (
        "passes over the stories; 0: the preset's",
        "গল্পগুলো কতবার পড়বে; 0 মানে preset যা বলে",
    ),
    "batch_size": (
        "windows in a step; 0: the preset's",
        "এক ধাপে কতগুলো অংশ পড়বে; 0 মানে preset যা বলে",
    ),
    "learning_rate": (
        "highest learning rate; 0: the preset's",
        "শেখার সর্বোচ্চ হার; 0 মানে preset যা বলে",
    ),
    "frozen_layers": (
        "blocks of GPT-2 that stay as they are; 0: none",
        "জিপিটি-২ এর কতগুলো স্তর বদলাবে না; 0 মানে সব বদলায়",
    ),
    "save_every_minutes": (
        "minutes between checkpoints",
        "কত মিনিট পর পর সংরক্ষণ করবে",
    ),
    "start_over": (
        "begin a new training, once; earlier checkpoints are moved aside",
        "একবার নতুন করে শুরু করে; আগের চেকপয়েন্ট সরিয়ে রাখা হয়",
    ),
    "accept_changes": (
        "resume although the corpus or the settings have changed",
        "গল্প বা সেটিং বদলে গেলেও আগের শেখা চালিয়ে যায়",
    ),
}
# The studio. What has numbers or names in it is put together from these parts.
STUDIO = {
    "Title, or none": "শিরোনাম (না দিলেও চলে)",
    "Title": "শিরোনাম",
    "Story": "গল্প",
    "Opening words, or nothing. Then press Write.": "শুরুর কথা, বা কিছুই না; তারপর ‘লিখুন’।",
    "Write": "লিখুন",
    "Stop": "থামুন",
    "Continue": "চালিয়ে যান",
    "Continue from the cursor": "কার্সর থেকে লিখুন",
    "Retry": "আবার চেষ্টা",
    "The last passage, once more": "শেষ অংশটি আবার লেখে",
    "Undo": "ফিরিয়ে নিন",
    "Redo": "আবার করুন",
    "Three ways on": "তিনটি পথ",
    "New story": "নতুন গল্প",
    "Ready": "প্রস্তুত",
    "Writing": "লিখছে",
    "Stopped": "থেমেছে",
    "the story came to its end": "গল্প শেষ হয়েছে",
    "max tokens reached": "টোকেনের সীমা পর্যন্ত লেখা হয়েছে",
    "tokens": "টোকেন",
    "a second": "প্রতি সেকেন্ডে",
    "words": "শব্দ",
    "space": "ফাঁক",
    "the end": "সমাপ্তি",
    "the model sees the text from here on": "মডেল এখান থেকে লেখা দেখে",
    "Ways on": "গল্পের পথ",
    "Way": "পথ",
    "Take this": "এটি নিন",
    "Take way": "এই পথ নিন",
    "I like this one": "এটি ভালো লাগল",
    "I like way": "এই পথ ভালো লাগল",
    "Close": "বন্ধ করুন",
    "Close the ways": "পথগুলো বন্ধ করুন",
    "Other words": "অন্য শব্দ",
    "Instead:": "এর বদলে:",
    "Settings": "সেটিং",
    "Presets": "তৈরি সেটিং",
    "careful": "সাবধানী",
    "balanced": "মাঝারি",
    "wild": "খেয়ালি",
    "exact": "নির্দিষ্ট",
    "temperature": "তাপমাত্রা",
    "max tokens": "সর্বোচ্চ টোকেন",
    "repetition penalty": "পুনরাবৃত্তির শাস্তি",
    "seed": "বীজ",
    "0 takes the most likely token; 1 samples with the model's own probabilities": (
        "০ হলে সবচেয়ে সম্ভাব্য টোকেন নেয়; ১ হলে মডেলের নিজের সম্ভাবনা অনুযায়ী বেছে নেয়"
    ),
    "sample among so many most likely tokens; 0: among all": (
        "সবচেয়ে সম্ভাব্য এতগুলো টোকেন থেকে বেছে নেয়; ০ মানে সব থেকে"
    ),
    "the longest passage; a token is about ¾ of a word": (
        "একবারে সবচেয়ে বেশি কতটা লিখবে; একটি টোকেন প্রায় একটি শব্দের সমান বা ছোট"
    ),
    "sample among the fewest tokens of this probability": (
        "যে কয়টি টোকেনের মোট সম্ভাবনা এতটা, তাদের থেকে বেছে নেয়"
    ),
    "drop tokens below this share of the highest probability": (
        "সর্বোচ্চ সম্ভাবনার এই অংশের কম হলে টোকেনটি বাদ দেয়"
    ),
    "above 1, tokens that stood before become less likely": ("১ এর বেশি হলে আগে আসা টোকেন কম আসে"),
    "the same seed and settings give the same words again": (
        "একই বীজ ও একই সেটিং দিলে একই লেখা পাওয়া যায়"
    ),
    "Beams": "বিম",
    "Above 1, the likeliest passage is searched for: good for one right answer, bad for stories.": (
        "১ এর বেশি হলে সবচেয়ে সম্ভাব্য লেখাটি খোঁজে: একটিই ঠিক উত্তর থাকলে ভালো, গল্পের জন্য খারাপ"
    ),
    "Note: what the model always sees": "নোট: মডেল যা সবসময় দেখে",
    "Who, where, what must not be forgotten": "কে, কোথায়, কী ভোলা চলবে না",
    "Write side by side": "পাশাপাশি লিখুন",
    "How many": "কয়টি",
    "each preset": "প্রতিটি সেটিং",
    "Mark what the model wrote": "মডেলের লেখা চিহ্নিত করুন",
    "Shade surprising words": "অপ্রত্যাশিত শব্দ দেখান",
    "More": "আরও",
    "Save as preset": "সেটিং রেখে দিন",
    "Delete it": "মুছে ফেলুন",
    "Name of a preset": "সেটিংয়ের নাম",
    "name": "নাম",
    "What the story shall have": "গল্পে যা থাকবে",
    "Hero": "নায়ক",
    "Words": "শব্দ",
    "Length": "দৈর্ঘ্য",
    "any": "যে কোনো",
    "short": "ছোট",
    "medium": "মাঝারি",
    "long": "বড়",
    "For a model that was trained with requests.": "যে মডেল অনুরোধসহ শিখেছে, তার জন্য।",
    "Shelf": "তাক",
    "Search": "খুঁজুন",
    "Search the shelf": "তাকে খুঁজুন",
    "Kind of file": "ফাইলের ধরন",
    "HTML, for printing": "HTML, ছাপার জন্য",
    "plain text": "সাধারণ লেখা",
    "Export this story": "এই গল্প ফাইলে নিন",
    "Export all": "সব গল্প ফাইলে নিন",
    "Exported:": "ফাইল তৈরি হয়েছে:",
    "Copy": "কপি করুন",
    "Copied.": "কপি হয়েছে।",
    "The browser refuses; the story is selected, so press Ctrl+C.": (
        "ব্রাউজার অনুমতি দেয়নি; গল্পটি নির্বাচিত আছে, Ctrl+C চাপুন।"
    ),
    "Star": "তারা দিন:",
    "Delete": "মুছুন",
    "Really delete?": "সত্যিই মুছবেন?",
    "No story here.": "এখানে কোনো গল্প নেই।",
    "More stories, to search for:": "আরও গল্প আছে, খুঁজে নিন:",
    "Damaged files, skipped:": "নষ্ট ফাইল, বাদ দেওয়া হয়েছে:",
    "Taste": "রুচি",
    "Taste: how much it counts": "রুচি: কতটা মানবে",
    "Choices:": "বাছাই:",
    "Still needed:": "আরও লাগবে:",
    "Learn from my choices": "আমার বাছাই থেকে শেখান",
    "Inspector: the next tokens, and where the model looks": (
        "ভেতরে দেখুন: পরের টোকেন, আর মডেল কোথায় তাকায়"
    ),
    "Where the head looks, token by token": "প্রতিটি টোকেনে হেডটি কোথায় তাকায়",
    "Layer": "স্তর",
    "layer": "স্তর",
    "Head": "হেড",
    "head": "হেড",
    "Look": "দেখুন",
    "The kernel does not answer. Run the cell again; your stories are on the shelf.": (
        "কার্নেল সাড়া দিচ্ছে না। সেলটি আবার চালান; আপনার গল্প তাকে আছে।"
    ),
}
BENGALI = {**STUDIO, **{english: bengali for english, bengali in FORM.values()}}


def check_language(language: str) -> None:
    """Raise ValueError unless the language is one of `LANGUAGES`."""
    if language not in LANGUAGES:
        names = ", ".join(map(repr, LANGUAGES))
        raise ValueError(f"there is no language {language!r}; they are {names}")


def translate(text: str, language: str = "en") -> str:
    """An English text of a page in `language`. Raises ValueError for an unknown language."""
    check_language(language)
    return text if language == "en" else BENGALI[text]


def page_labels(language: str = "en") -> dict[str, str]:
    """The studio's texts, English → `language`; empty for English. Raises ValueError."""
    check_language(language)
    return {} if language == "en" else {text: translate(text, language) for text in STUDIO}


def explain_form(language: str = "en") -> None:
    """Print what each field of the form in train.ipynb means. Raises ValueError."""
    for name, (text, _) in FORM.items():
        print(f"{name:20} {translate(text, language)}")
