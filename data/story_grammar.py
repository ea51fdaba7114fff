"""The story grammar: reads the plots, fills their holes and writes stories.

docs/story_grammar.md says how to read and how to add a plot.
"""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from story_world import (
    CHILDREN,
    HELPERS,
    HEROES,
    MANNERS,
    OPENINGS,
    THINGS,
    TRADES,
    Person,
    friend_of,
    home_of,
)

PLOTS_DIR = Path(__file__).resolve().parent / "plots"

MAX_SAME_TITLE = 16
MOST_SHARED = 0.5  # of the sentences of two stories with the same plot and hero
MOST_TRIES = 200  # a story
CHILD = 0.35  # how often a hero is a child where the plot allows any trade
UNTITLED = 12  # one story in so many has no title, as when a reader gives only the first words


@dataclass(frozen=True)
class Length:
    """How long a story is: the share of its optional lines, and how many words it may have."""

    share: float
    shortest: int
    longest: int


# A third of the stories each, with a gap between them, so that a model can learn what "short"
# means. Also the longest fit into the 272 tokens that the smallest preset sees at once.
LENGTHS = (Length(0, 60, 95), Length(0.5, 102, 127), Length(1, 134, 165))


@dataclass
class Slot:
    """One thing to say, and the ways to say it."""

    ways: list
    optional: bool


@dataclass(frozen=True)
class Plot:
    """A plot: its titles, its facts and its script.

    A fact is a table: the key names the columns, and one row is picked for each story, so that
    facts of one row always fit together.
    """

    name: str
    titles: list
    paragraphs: list  # each a list of slots
    script: str
    facts: dict = field(default_factory=dict)
    trades: tuple = ()  # empty: any trade, or a child


CASES = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself", "child": "boy"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself", "child": "girl"},
}


# -- reading plots ------------------------------------------------------------------------------


def read_plot(path: Path) -> Plot:
    """The plot in a file. Raises ValueError for a line that has no meaning."""
    sections = {}
    name = None  # of the section
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.endswith(":") and line[0] not in "-~/":
            name = line[:-1]
            sections[name] = []
        elif name is not None:
            sections[name].append(line)
        else:
            raise ValueError(f"{path.name}: {line!r} comes before the first heading")
    script = "\n".join(sections.pop("story"))
    return Plot(
        name=path.stem.replace("_", " "),
        titles=items(sections.pop("titles")),
        paragraphs=parse_script(script),
        script=script,
        trades=tuple(items(sections.pop("trades", []))),
        facts=read_facts(sections, path),
    )


def read_facts(sections: dict, path: Path) -> dict:
    """Sections "fact …" → columns → rows, each a list of as many words as there are columns."""
    facts = {}
    for heading, lines in sections.items():
        if not heading.startswith("fact "):
            raise ValueError(f"{path.name}: unknown heading {heading!r}")
        columns = heading.removeprefix("fact ")
        facts[columns] = [row.split(" | ") for row in items(lines)]
        if any(len(row) != len(columns.split()) for row in facts[columns]):
            raise ValueError(f"{path.name}: a row of {heading!r} has too many or too few columns")
    return facts


def items(lines: list[str]) -> list[str]:
    """What stands behind the dashes."""
    return [line.removeprefix("- ") for line in lines if line.strip()]


def parse_script(script: str) -> list[list[Slot]]:
    """Split a script into paragraphs; each is a list of slots."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", script.strip()):
        slots = []
        for line in block.splitlines():
            mark, _, words = line.strip().partition(" ")
            if mark in "-~":
                slots.append(Slot([words], optional=mark == "~"))
            elif mark == "/":
                slots[-1].ways.append(words)
            else:
                raise ValueError(f"a line needs a dash, a wave or a slash: {line!r}")
        paragraphs.append(slots)
    return paragraphs


PLOTS = [read_plot(path) for path in sorted(PLOTS_DIR.glob("*.txt"))]


# -- filling holes ------------------------------------------------------------------------------


def with_article(words: str) -> str:
    """Put "a" or "an" before the words."""
    return ("an " if words[0].lower() in "aeiou" else "a ") + words


class Holes(dict):
    """The words for the holes of one story; "{a thing}" works for every thing."""

    def __missing__(self, key):
        if key.startswith("a "):
            return with_article(fill(self[key[2:]], self))
        if key.startswith("A "):
            return capitalise(self[f"a {key[2:]}"])
        if key.lower() in self:  # "{He}" is "{he}" with a capital letter
            return capitalise(self[key.lower()])
        raise KeyError(f"no words for the hole {{{key}}}")


def fill(template: str, holes: Holes) -> str:
    """Fill the holes. What is filled in may hold holes of its own."""
    while "{" in template:
        template = template.format_map(holes)
    return template


def capitalise(text: str) -> str:
    """Give each sentence a capital letter, but not the words after "Go!" and the like."""
    start = r'(^"?|[.!?] |\." )([a-z])'
    return re.sub(start, lambda m: m.group(1) + m.group(2).upper(), text)


SMALL_WORDS = set("a an the and or of in on at to by for from with".split())


def title_case(text: str) -> str:
    """Capital letters for a title, but not for its small words."""
    words = text.split()
    return " ".join(
        word if i and word in SMALL_WORDS else word[0].upper() + word[1:]
        for i, word in enumerate(words)
    )


# -- writing stories ----------------------------------------------------------------------------


def person_holes(role: str, person: Person) -> dict:
    """The holes for one person, for example {friend} and {friend_his}."""
    cases = {f"{role}_{case}": word for case, word in CASES[person.he].items()}
    return {role: person.name, **cases}


def trades_of(plot: Plot) -> list[str]:
    """Who the hero of a plot may be: trades, "child", or both."""
    if plot.trades:
        return list(plot.trades)
    # A potter must not meet "the potter" of the plot, so such trades are out.
    return ["child", *(trade for trade in TRADES if trade not in plot.script)]


def choose_trade(plot: Plot, hero: Person, rng: random.Random) -> tuple[str, str, str]:
    """The hero's manner and trade, and one thing worth knowing about the hero."""
    trades = trades_of(plot)
    if "child" in trades and (len(trades) == 1 or rng.random() < CHILD):
        manner, trait = rng.choice(CHILDREN)
        return manner, CASES[hero.he]["child"], trait
    trade = rng.choice([trade for trade in trades if trade != "child"])
    return rng.choice(MANNERS), trade, rng.choice(TRADES[trade])


def others_for(hero: Person, people: list[Person]) -> list[Person]:
    """Those of the other sex, so that a pronoun in a story can mean one person only."""
    return [person for person in people if person.he != hero.he]


def helpers_of(plot: Plot) -> list[Person]:
    """Whom the hero of a plot may meet: nobody who is somebody else in it."""
    return [helper for helper in HELPERS if helper.name.split()[-1] not in plot.script]


def choose_holes(plot: Plot, rng: random.Random) -> Holes:
    """Choose everything that one story needs to know."""
    hero = rng.choice(HEROES)
    manner, trade, trait = choose_trade(plot, hero, rng)
    helpers = [one for one in others_for(hero, helpers_of(plot)) if trade not in one.name]
    holes = Holes(hero=hero.name, **CASES[hero.he])
    holes.update(who=f"{manner} {trade}", trade=trade, trait=trait, opening=rng.choice(OPENINGS))
    holes.update(person_holes("friend", friend_of(hero)))
    holes.update(person_holes("helper", rng.choice(helpers)))
    home = home_of(hero)
    holes.update(place=home.where, **{thing: getattr(home, thing) for thing in THINGS})
    for columns, rows in plot.facts.items():
        holes.update(zip(columns.split(), rng.choice(rows), strict=True))
    return holes


def write_story(plot: Plot, rng: random.Random, share: float = 0.5) -> tuple[str, str, str]:
    """Write one story. Returns its title, the name of its hero and its text.

    share: of the optional lines that are said: see `choose_optional`.
    """
    holes = choose_holes(plot, rng)
    title = title_case(fill(rng.choice(plot.titles), holes))
    optional = sum(slot.optional for slots in plot.paragraphs for slot in slots)
    is_said = iter(choose_optional(optional, share))
    paragraphs = []
    for slots in plot.paragraphs:
        said = [slot for slot in slots if not slot.optional or next(is_said)]
        sentences = [capitalise(fill(rng.choice(slot.ways), holes)) for slot in said]
        paragraphs.append(" ".join(sentences))
    return title, holes["hero"], "\n\n".join(filter(None, paragraphs))


def choose_optional(count: int, share: float) -> list[bool]:
    """Which of `count` optional lines are said: none, all, or for 0.5 every second one.

    The same ones each time, so that a model can learn from the length alone what is said. Raises
    ValueError for a share that is not 0, 0.5 or 1.
    """
    if share not in (0, 0.5, 1):
        raise ValueError(f"the share of optional lines is {share}; it must be 0, 0.5 or 1")
    return [share == 1 or (share == 0.5 and number % 2 == 0) for number in range(count)]


def write_stories(count: int, seed: int) -> list[tuple[str, str, str, str]]:
    """`count` stories, turn by turn from each plot and of each length, no two nearly the same.

    Each is its plot's name, its title, its hero and its text.
    """
    rng = random.Random(seed)
    stories = []
    seen = defaultdict(list)  # (plot, hero) → the sentences of each story so far
    titles = Counter()
    tries = 0
    while len(stories) < count:
        tries += 1
        if tries > MOST_TRIES * (len(stories) + 1):
            raise ValueError(f"the plots have fewer than {count} different stories that fit")
        turn, number = divmod(len(stories), len(PLOTS))
        plot = PLOTS[number]
        length = LENGTHS[(turn + number) % len(LENGTHS)]
        title, hero, text = write_story(plot, rng, length.share)
        good_length = length.shortest <= len(text.split()) <= length.longest
        hero_at_end = hero in text.split("\n\n")[-1]
        sentences = split_sentences(text)
        new = not is_near(sentences, seen[plot.name, hero]) and titles[title] < MAX_SAME_TITLE
        if good_length and hero_at_end and new:
            seen[plot.name, hero].append(sentences)
            titles[title] += 1
            stories.append((plot.name, title, hero, text))
    rng.shuffle(stories)
    return stories


def split_sentences(text: str) -> set[str]:
    """The sentences of a story; one that ends in speech goes on to the next end."""
    return set(re.split(r"(?<=[.!?]) |\n\n", text))


def is_near(sentences: set[str], others: list[set[str]]) -> bool:
    """Whether a story shares most of its sentences with one of the others."""
    return any(len(sentences & other) > MOST_SHARED * len(sentences) for other in others)


def check_stories(stories: list[tuple[str, str, str, str]]) -> None:
    """Raise ValueError if a story breaks a rule that every story must keep."""
    names = {hero.name for hero in HEROES}
    texts = [text for _, _, _, text in stories]
    if len(set(texts)) != len(texts):
        raise ValueError("two stories are equal")
    for _, title, hero, text in stories:
        paragraphs = text.split("\n\n")
        first_sentence = re.split(r"[.!?]", text)[0]
        heroes_met = names & set(re.findall(r"[A-Z]\w+", title + " " + text))
        problems = {
            "a hole was left open": re.search(r"[{}]", title + text),
            "a double space": "  " in title + text,
            "an empty paragraph": "" in paragraphs,
            "a wrong article": re.search(r"\b[Aa] [aeiou]|\b[Aa]n (?!honest)[^aeiou]", text),
            "no hero at the start": hero not in first_sentence,
            "no hero at the end": hero not in paragraphs[-1],
            "more heroes than one": heroes_met != {hero},
        }
        for problem, found in problems.items():
            if found:
                raise ValueError(f"{problem} in {title!r}:\n{text}")


def format_corpus(stories: list[tuple[str, str, str, str]]) -> str:
    """The stories in the format that the model is trained on."""
    titled = "<|start|>\n<|title|>{}</|title|>\n\n{}\n<|end|>\n"
    untitled = "<|start|>\n{1}\n<|end|>\n"
    forms = (untitled if i % UNTITLED == 0 else titled for i in range(len(stories)))
    return "\n".join(
        form.format(title, text) for form, (_, title, _, text) in zip(forms, stories, strict=True)
    )
