"""Make data/training_data.txt: a small library of children's stories.

The stories come from a story grammar written for this project. Each plot is a
short script with holes and with several ways to say each sentence. This file
picks a hero, a place, a trade and the facts of the plot, fills the holes, and
writes the stories down. No text is copied from any book or web page.

    python data/make_training_data.py
    python data/make_training_data.py --stories 500 --output my_stories.txt

The same seed always gives the same file, byte for byte.
Licence: MIT, like the rest of the project. Only the standard library is used.

How to read a plot (they are in PLOTS, below):

    - A line with a dash is one thing to say.
    ~ A line with a wave is one thing to say, or to leave out.
    / A line with a slash is another way to say the thing above it.
    A blank line starts a new paragraph.
    {hero}, {he}, {place} and so on are holes; "{a thing}" adds "a" or "an".
"""

import argparse
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

# ---------------------------------------------------------------------------
# The engine: what a story is made of, and how the holes are filled.
# ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """Somebody with a pronoun: a hero, a friend or a helper met on the way."""

    name: str
    he: str  # "he" or "she"


@dataclass(frozen=True)
class Region:
    """A part of the world. Its trees, food and weather belong together."""

    heroes: list  # each has the place of the same number
    friends: list
    places: list
    water: list
    tree: list
    dish: list
    treats: list  # always plural
    beast: list
    rain: str  # what falls, or flies, in a storm


@dataclass(frozen=True)
class Plot:
    """A plot: its titles, its facts and its script (see the top of the file).

    A fact is a table: the key names the columns, and one row is picked for
    each story, so that facts of one row always fit together.
    """

    name: str
    titles: list
    story: str
    facts: dict = field(default_factory=dict)
    trades: tuple = ()  # empty: any trade, or a child


@dataclass
class Slot:
    """One thing to say, and the ways to say it."""

    ways: list
    optional: bool


CASES = {
    "he": {"he": "he", "him": "him", "his": "his", "himself": "himself", "child": "boy"},
    "she": {"he": "she", "him": "her", "his": "her", "himself": "herself", "child": "girl"},
}


def with_article(words):
    """Put "a" or "an" before the words."""
    return ("an " if words[0].lower() in "aeiou" else "a ") + words


class Holes(dict):
    """The words for the holes of one story; "{a thing}" works for every thing."""

    def __missing__(self, key):
        if key.startswith("a "):
            return with_article(fill(self[key[2:]], self))
        if key.lower() in self:  # "{He}" is "{he}" with a capital letter
            return capitalise(self[key.lower()])
        raise KeyError(f"no words for the hole {{{key}}}")


def fill(template, holes):
    """Fill the holes. What is filled in may hold holes of its own."""
    while "{" in template:
        template = template.format_map(holes)
    return template


def capitalise(text):
    """Give each sentence a capital letter, but not the words after "Go!" and the like."""
    start = r'(^"?|[.!?] |\." )([a-z])'
    return re.sub(start, lambda m: m.group(1) + m.group(2).upper(), text)


SMALL_WORDS = set("a an the and or of in on at to by for from with".split())


def title_case(text):
    """Capital letters for a title, but not for its small words."""
    words = text.split()
    return " ".join(
        word if i and word in SMALL_WORDS else word[0].upper() + word[1:]
        for i, word in enumerate(words)
    )


def parse(script):
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


def person_holes(role, person):
    """The holes for one person, for example {friend} and {friend_his}."""
    cases = {f"{role}_{case}": word for case, word in CASES[person.he].items()}
    return {role: person.name, **cases}


def choose_trade(plot, hero, rng):
    """Say who the hero is, and one thing worth knowing about the hero."""
    if not plot.trades and rng.random() < 0.35:
        kind, trait = rng.choice(CHILDREN)
        return f"{kind} {CASES[hero.he]['child']}", trait
    # A potter must not meet "the potter" of the plot, so such trades are out.
    trades = plot.trades or [trade for trade in TRADES if trade not in plot.story]
    trade = rng.choice(trades)
    return f"{rng.choice(MANNERS)} {trade}", rng.choice(TRADES[trade])


def choose_holes(plot, rng):
    """Choose everything that one story needs to know."""
    region = rng.choice(REGIONS)
    hero = rng.choice(region.heroes)
    who, trait = choose_trade(plot, hero, rng)
    trade = who.split(" ", 1)[1]
    helpers = [h for h in HELPERS if trade not in h.name and h.name.split()[-1] not in plot.story]

    holes = Holes(hero=hero.name, **CASES[hero.he])
    holes.update(who=who, trade=trade, trait=trait, opening=rng.choice(OPENINGS))
    holes.update(person_holes("friend", rng.choice(region.friends)))
    holes.update(person_holes("helper", rng.choice(helpers)))
    for thing in ("water", "tree", "dish", "treats", "beast"):
        holes[thing] = rng.choice(getattr(region, thing))
    holes.update(place=region.places[region.heroes.index(hero)], rain=region.rain)
    for columns, rows in plot.facts.items():
        row = rng.choice(rows)
        holes.update(zip(columns.split(), [row] if isinstance(row, str) else row))
    return holes


def name_the_hero(way, rng):
    """Often say the hero's name for the first "he" or "she" of a sentence.

    A name that is heard again and again stays in the mind of a small child,
    and of a small model: it learns to look back for it.
    """
    if "{hero}" in way or rng.random() > NAMED:
        return way
    return re.sub(r"\{[Hh]e\}", "{hero}", way, count=1)


def tell(plot, rng):
    """Tell one story. Returns its title, the name of its hero and its text."""
    holes = choose_holes(plot, rng)
    title = title_case(fill(rng.choice(plot.titles), holes))
    paragraphs = []
    for slots in parse(plot.story):
        said = [slot for slot in slots if not slot.optional or rng.random() < 0.5]
        ways = [name_the_hero(rng.choice(slot.ways), rng) for slot in said]
        sentences = [capitalise(fill(way, holes)) for way in ways]
        paragraphs.append(" ".join(sentences))
    return title, holes["hero"], "\n\n".join(filter(None, paragraphs))


def tell_all(count, seed):
    """Tell `count` stories, turn by turn from each plot, with no repetition."""
    rng = random.Random(seed)
    stories, seen, titles = [], set(), Counter()
    while len(stories) < count:
        plot = PLOTS[len(stories) % len(PLOTS)]
        title, hero, text = tell(plot, rng)
        good_length = MIN_WORDS <= len(text.split()) <= MAX_WORDS
        hero_at_end = hero in text.split("\n\n")[-1]
        new = text not in seen and titles[title] < MAX_SAME_TITLE
        if good_length and hero_at_end and new:
            seen.add(text)
            titles[title] += 1
            stories.append((plot.name, title, hero, text))
    rng.shuffle(stories)
    return stories


def check(stories):
    """Raise an error if a story breaks a rule that every story must keep."""
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


def as_file(stories):
    """Write the stories in the format that the model is trained on."""
    titled, untitled = "<|start|>\n<|title|>{}</|title|>\n\n{}\n<|end|>\n", "<|start|>\n{1}\n<|end|>\n"
    forms = (untitled if i % UNTITLED == 0 else titled for i in range(len(stories)))
    return "\n".join(form.format(title, text) for form, (_, title, _, text) in zip(forms, stories))


# ---------------------------------------------------------------------------
# The world: who lives where, and what they do all day.
# ---------------------------------------------------------------------------

MIN_WORDS, MAX_WORDS = 80, 136  # so that a story fits into the 272 tokens that the smallest preset sees at once
MAX_SAME_TITLE = 16
NAMED = 0.9  # how often a "he" or "she" gives way to the name
UNTITLED = 12  # one story in so many stands without its title, as when a reader gives nothing but the first words


def people(she, he):
    """Two lists of names become one list of persons."""
    return [Person(n, "she") for n in she.split()] + [Person(n, "he") for n in he.split()]


# The names are common ones which GPT-2 keeps whole, as one token each. It
# makes the hero easy to remember for a very small model.
REGIONS = [
    Region(  # Bengal
        heroes=people("Maya Tara", "Raj"),
        friends=people("Devi", "Kumar"),
        places=["in a village of ponds in Bengal", "in a narrow lane in Dhaka",
                "in an old street in Kolkata"],
        water=["pond", "river"], tree=["mango tree", "palm tree"],
        dish=["rice and fish", "rice and hot beans"],
        treats=["rice cakes", "mango sweets", "milk sweets"],
        beast=["goat", "cow", "buffalo"], rain="monsoon rain",
    ),
    Region(  # the North
        heroes=people("Hanna Natasha", "Ivan"),
        friends=people("Vera", "Igor"),
        places=["in a snowy village in Norway", "in a village at the edge of a pine forest",
                "in a wooden town in the far north"],
        water=["lake", "river"], tree=["pine tree", "apple tree"],
        dish=["hot cabbage soup", "fish soup"],
        treats=["honey cakes", "berry pies", "butter buns"],
        beast=["pony", "goat", "donkey"], rain="snow",
    ),
    Region(  # green islands
        heroes=people("Fiona", "Owen Dylan"),
        friends=people("Kate", "Sean"),
        places=["on a windy island", "in a stone village in Ireland",
                "in a harbour town with white boats"],
        water=["sea", "river"], tree=["oak tree", "apple tree"],
        dish=["potato soup", "fish and potatoes"],
        treats=["apple pies", "oat cakes", "butter buns"],
        beast=["donkey", "pony", "cow"], rain="rain",
    ),
    Region(  # the South of Europe
        heroes=people("Elena", "Leo Marco"),
        friends=people("Stella", "Simon"),
        places=["in a sunny village in Spain", "in a hill town in Italy",
                "in a white village in Greece"],
        water=["sea", "river"], tree=["olive tree", "orange tree", "lemon tree"],
        dish=["bean soup", "fish with lemon"],
        treats=["almond cakes", "lemon pies", "sugar buns"],
        beast=["donkey", "goat", "mule"], rain="rain",
    ),
    Region(  # the edge of the desert
        heroes=people("Sara", "Ali Ahmed"),
        friends=people("Ruth", "Adam"),
        places=["in a white village by the Nile", "in a town at the edge of the desert",
                "in a village of gardens in Persia"],
        water=["river"], tree=["fig tree", "date palm"],
        dish=["beans and flat bread", "lamb and rice"],
        treats=["date cakes", "fig sweets", "honey cakes"],
        beast=["camel", "donkey", "goat"], rain="sand",
    ),
    Region(  # the East of Asia
        heroes=people("Mei Lin", "Ken"),
        friends=people("Kim", "Jin"),
        places=["in a misty village in Japan", "in a river town in China",
                "in a village under a blue mountain"],
        water=["river", "lake"], tree=["plum tree", "cherry tree"],
        dish=["noodle soup", "rice and fish"],
        treats=["rice cakes", "bean buns", "plum cakes"],
        beast=["ox", "donkey", "pony"], rain="rain",
    ),
    Region(  # from Mexico to Peru
        heroes=people("Isabel", "Pablo Carlos"),
        friends=people("Eva", "Juan"),
        places=["in a high village in Peru", "in a mountain village in Chile",
                "in a sunny town in Mexico"],
        water=["river", "lake"], tree=["orange tree", "pepper tree"],
        dish=["corn soup", "beans and corn bread"],
        treats=["corn cakes", "sugar buns", "honey cakes"],
        beast=["donkey", "mule", "goat"], rain="rain",
    ),
    Region(  # Africa
        heroes=people("Grace", "Noah Jamal"),
        friends=people("Hope", "Abel"),
        places=["in a round village in Kenya", "in a river village in Ghana",
                "in a village of red earth in Mali"],
        water=["river", "lake"], tree=["fig tree", "mango tree"],
        dish=["hot bean soup", "yams and fish"],
        treats=["banana cakes", "corn cakes", "honey cakes"],
        beast=["goat", "cow", "donkey"], rain="rain",
    ),
    Region(  # the middle of Europe
        heroes=people("Zoe Emma", "Ben"),
        friends=people("Jane", "Peter"),
        places=["in a market town in France", "in a mountain village in the Alps",
                "on a crooked street in Prague"],
        water=["river", "lake"], tree=["apple tree", "pear tree"],
        dish=["onion soup", "bread and cheese"],
        treats=["apple pies", "plum cakes", "ginger buns"],
        beast=["donkey", "pony", "goat"], rain="rain",
    ),
]

HEROES = [hero for region in REGIONS for hero in region.heroes]

OPENINGS = [
    "Once upon a time, {place}, there lived {a who} named {hero}.",
    "{Place} lived {a who} named {hero}.",
    "{hero} was {a who} {place}.",
    "Long ago, {a who} named {hero} lived {place}.",
    "There was once {a who} named {hero}, who lived {place}.",
    "{Place} lived {hero}, {a who}.",
]

MANNERS = ["young", "cheerful", "poor", "clever", "kind", "busy", "quiet", "patient"]

CHILDREN = [
    ("small", "{He} was small, but {his} questions were very big."),
    ("curious", "{He} asked so many questions that even the owls got tired."),
    ("quiet", "{He} did not talk much, but {he} saw everything."),
    ("cheerful", "{He} laughed easily, and {he} sang in the bath."),
    ("clever", "{He} could count all the ducks, even when they moved."),
    ("dreamy", "{He} often put {his} shoes on the wrong feet."),
    ("brave", "{He} was not afraid of anything, except cold soup."),
    ("little", "{He} had two loose teeth and a great many plans."),
]

TRADES = {
    "potter": ["{His} pots were round, and {his} jokes were rounder.",
               "{He} made cups and bowls that never leaked, or almost never."],
    "baker": ["{He} baked bread every day before the birds woke up.",
              "People said that {his} bread could make a stone smile."],
    "weaver": ["{He} wove cloth in all the colours of the morning.",
               "{His} blankets were so soft that the cats stole them."],
    "carpenter": ["{He} could build anything, but {his} own chair had three legs.",
                  "{He} had sawdust in {his} hair and a pencil behind {his} ear."],
    "fisher": ["{He} caught small fish and told stories of big ones.",
               "{His} little boat was old, but it knew the way home."],
    "tailor": ["{His} coats had many pockets, and in every pocket was a surprise.",
               "{He} could sew a button on anything, even on a hat."],
    "gardener": ["{He} talked to {his} beans, and the beans grew taller to listen.",
                 "{His} garden was small, but every bee knew the way to it."],
    "shepherd": ["{He} knew each sheep by name, and each sheep knew {him}.",
                 "{He} counted {his} sheep each night and always fell asleep at nine."],
    "drummer": ["{He} drummed on pots, on doors and on {his} own knees.",
                "When {he} played, even the old chairs wanted to dance."],
    "painter": ["{He} always had a spot of blue paint on {his} nose.",
                "{He} painted doors, boats and sometimes, by mistake, the cat."],
    "tea seller": ["{His} tea was hot and sweet, and so was {his} talk.",
                   "{He} knew all the news, because all the news drinks tea."],
    "shoemaker": ["{He} made shoes for everyone and walked about with bare feet.",
                  "{His} shoes were so light that old men ran in them."],
    "letter carrier": ["{He} carried good news quickly and bad news gently.",
                       "{He} knew every door and every dog in the place."],
    "storyteller": ["{He} had a story for every day and two for a rainy one.",
                    "{His} stories were long, but nobody ever went home early."],
}

HELPERS = [
    Person("old potter", "he"), Person("tall shepherd", "he"), Person("blind singer", "he"),
    Person("flower seller", "she"), Person("basket maker", "she"), Person("barber", "he"),
    Person("bell ringer", "he"), Person("old soldier", "he"), Person("sleepy miller", "he"),
    Person("tired traveller", "he"), Person("honey seller", "she"), Person("old sailor", "he"),
    Person("schoolteacher", "she"), Person("girl with a red scarf", "she"),
    Person("boy with a big hat", "he"), Person("old woman with a stick", "she"),
    Person("old man with a long beard", "he"), Person("young doctor", "she"),
    Person("rope maker", "he"), Person("egg seller", "she"), Person("kind weaver", "she"),
    Person("drummer in a green coat", "he"), Person("washerwoman", "she"),
    Person("goose girl", "she"), Person("spice seller", "he"),
]

# ---------------------------------------------------------------------------
# The plots.
# ---------------------------------------------------------------------------

PLOTS = [
    Plot(
        name="the silent wager",
        titles=["{hero} says nothing", "{hero} and the wager", "The longest day of {hero}",
                "{hero} wins {a prize}", "Not one word, {hero}!",
                "{hero} and the merchant's {prize}"],
        facts={"prize": ["fat goose", "silver cup", "red cloak", "sack of rice", "brass lamp",
                         "black pony", "barrel of honey", "blue carpet"],
               "loss": ["the merchant's hat floating away on the {water}",
                        "a goat eating the merchant's coat",
                        "a hen asleep in the merchant's hat",
                        "two dogs with the merchant's dinner",
                        "a cow chewing the merchant's long scarf"]},
        story="""
        - {opening}
        - {He} talked from morning to night, and even in {his} sleep.
        / {He} talked so much that the parrots learned to be quiet.
        / {He} talked to people, to pots and to the moon.

        - One day a rich merchant said, "You cannot be silent for one whole day!"
        / One day a rich merchant laughed at {him}. "You cannot be quiet until sunset," he said.
        - "I can," said {hero}. "And if I do, I want your {prize}."
        / "Oh yes, I can," said {hero}. "Will you wager your {prize}?"
        - The merchant shook {his} hand, and {hero} shut {his} mouth.

        ~ At first it was easy.
        / In the morning it was not so hard.
        ~ Then the merchant called the sun a cheese, and {hero} only smiled.
        / Then the merchant told a joke without its ending, and {hero} bit {his} lip.
        / Then the merchant sang a song with all the wrong words, and {hero} held {his} nose.
        ~ At noon a bee sat on {his} ear, and still {he} said nothing.
        / At noon somebody stepped on {his} toe, and {he} danced, but {he} did not shout.
        / All {his} friends asked questions, and {he} answered with {his} eyebrows.

        - In the afternoon {hero} saw {loss}.
        / Just before sunset {hero} saw {loss}.
        - {He} wanted to shout, but {he} only pointed.
        / {He} pointed and jumped, but {he} did not say a word.
        - "What is it? Say it!" cried the merchant, who did not turn around.
        / "Say it! Say it!" cried the merchant, but {hero} shook {his} head.
        - When the sun went down, {hero} said, "Please look behind you."
        / Then the sun went down. "Behind you," said {hero} at last.

        - The merchant laughed until he cried, and he gave {hero} the {prize}.
        / The merchant looked, and groaned, and handed {hero} the {prize}.
        ~ {hero} shared the prize with all the neighbours, and told them everything, twice.
        / That night {hero} talked until the moon went down.
        / {He} called the {prize} Silence, because it was so hard to keep.
        ~ One quiet day can be worth more than a hundred loud ones.
        / Even a small mouth can keep a big promise.
        """,
    ),
    Plot(
        name="the kind trick",
        titles=["{hero} and the broken {thing}", "{hero} and old {friend}",
                "The {thing} that was not broken",
                "A kind trick", "The secret of the {thing}", "{hero} knocks again"],
        facts={"thing broken": [
            ("kite", "The tail of my kite is loose"), ("chair", "A leg of my chair is loose"),
            ("basket", "The handle of my basket is loose"),
            ("flute", "My flute has lost its voice"),
            ("lantern", "The door of my lantern will not close"),
            ("cart", "The wheel of my cart is crooked"), ("clock", "My clock is always late"),
            ("drum", "The skin of my drum is loose"),
            ("ladder", "A step of my ladder is loose"),
            ("umbrella", "My umbrella will not open")]},
        story="""
        - {opening}
        - Next door lived old {friend}, who never smiled and never came out.
        / Across the lane lived old {friend}, who kept the door shut and the lamp low.
        ~ "{friend} is angry with everyone," people said.
        / "{friend} does not like us," the neighbours said.
        - But {hero} had seen {friend} watching from the window, and {he} had an idea.
        / But {hero} thought that {friend} was only lonely.

        - The next morning {hero} knocked on the door.
        / On Monday {hero} knocked, with {a thing} in {his} hands.
        - "{broken}," {he} said. "Can you help me?"
        - Old {friend} frowned, took the {thing}, and mended it with two fingers.
        / Old {friend} grumbled, but {friend_he} put the {thing} right in one minute.

        - The next day {hero} came back. "{broken} again," {he} said.
        / The day after, {hero} knocked again. "It is broken again," {he} said sadly.
        ~ So it went all week.
        / Day after day {he} came, and day after day {friend} helped.
        ~ First {friend} gave {him} an answer, then a cup of tea, then a story.
        / On the third day there was tea. On the fifth day there were {treats}.
        - By Sunday half the children of the lane sat in the kitchen, and {friend} was laughing.
        / Soon the door stood open, and the neighbours came in one by one.

        - "You know," said {friend}, "that {thing} was never broken."
        - "And you were never angry," said {hero}.
        / "No," said {hero}, and {his} ears turned red. "But you mend it so well."
        ~ They laughed, and {friend} poured more tea.
        / Then {hero} and {friend} shared the last of the tea.
        - Some doors open best when you ask for help.
        / A lonely heart is easy to mend, if somebody knocks.
        / The {thing} is as strong as ever, but {hero} still knocks every day.
        / After that, nobody in the lane drank tea alone.
        """,
    ),
    Plot(
        name="the race",
        titles=["{hero} and the great {race}", "The great {race}", "How {hero} came last",
                "{hero} stops to help", "The slowest {ride} of all", "{hero} and the {ride}"],
        facts={"race ride": [("boat race", "boat"), ("cart race", "cart"),
                             ("pony race", "pony"), ("bicycle race", "bicycle"),
                             ("donkey race", "donkey"), ("wagon race", "wagon")],
               "trouble rescue thanks": [
                   ("a duckling caught in a net", "cut the net",
                    "The duckling rode home on {his} hat."),
                   ("a child who had lost a shoe", "found the shoe in a bush",
                    "The child waved the shoe like a flag."),
                   ("an old woman with a heavy basket", "carried the basket home",
                    "The old woman gave {him} the biggest pie in the basket."),
                   ("a lamb stuck in the mud", "pulled the lamb free",
                    "The lamb followed {him} all the way."),
                   ("a puppy crying in a hole", "lifted the puppy out",
                    "The puppy licked {him} from ear to ear."),
                   ("a boy who had lost his mother", "took the boy to his mother",
                    "The mother kissed {him} on both cheeks.")]},
        story="""
        - {opening}
        ~ {trait}
        - Every year there was a great {race}, and {hero} had never won.
        / Everyone loved the great {race}, and this year {hero} wanted to win it.
        ~ {His} {ride} was old and slow, but {he} was full of hope.
        / "My {ride} is slow," {he} said, "but it knows the way."

        - "I will win, as always," said {friend}, whose {ride} was the fastest of all.
        / {friend} had the fastest {ride} and the loudest laugh.
        - The drum went boom, and off they went!
        / A bell rang, and everyone shouted, "Go!"
        - {hero} was third, then second, and then, for one moment, first!
        / To {his} great surprise, {hero} was soon in front.
        / Halfway along, {hero} was ahead, and {his} heart sang.

        - Just then {he} saw {trouble}.
        / Then, beside the way, {he} saw {trouble}.
        - {hero} looked at the others, rushing by. Then {he} stopped.
        / "I can race next year," thought {hero}, and {he} stopped.
        - {He} {rescue}, and it took a long time.
        / Quickly and gently {he} {rescue}.
        ~ {thanks}

        - {hero} came in last of all, but the cheers were the loudest of the day.
        / When {hero} came in, long after the rest, the whole crowd stood up.
        - {friend} had won the golden cup.
        / {friend} held the golden cup and was quiet for once.
        - "I saw it too, and I did not stop," said {friend}, and put the cup in {hero}'s hands.
        / "You should drink first," said {friend}, and filled the cup for {hero}.
        ~ "Next year I will stop with you," said {friend}.
        - To be kind is better than to be quick.
        / You can lose a race and win the day.
        / The cup stood half the year in one house, and half the year in the other.
        """,
    ),
    Plot(
        name="the wish with a price",
        titles=["{hero} and the {giver}", "The wish of {hero}", "The {giver}'s price",
                "The {giver} and the wish", "What {hero} gave away"],
        facts={"giver met": [
                   ("golden fish", "{hero} met a golden fish in the {water}"),
                   ("white owl", "{hero} met a white owl in the {tree}"),
                   ("green frog", "{hero} met a green frog on a stone"),
                   ("silver fox", "{hero} met a silver fox under the moon"),
                   ("old lamp", "{hero} rubbed an old lamp, and the lamp spoke"),
                   ("blue bird", "{hero} met a blue bird on the roof"),
                   ("talking stone", "{hero} sat down on a talking stone")],
               "wish gift": [
                   ("a great house", "There stood a great house with ten cold rooms."),
                   ("a bag of gold", "There lay a bag of gold, yellow and heavy."),
                   ("a golden coat", "There hung a golden coat, stiff and shining."),
                   ("a table full of cakes", "There stood a table with a hundred cakes."),
                   ("a silver crown", "There lay a silver crown, too big for any head.")],
               "price miss": [
                   ("your laugh", "Friends told jokes, but no laugh came out"),
                   ("your songs", "{hero} opened {his} mouth, but no song came out"),
                   ("your dreams", "Every night was as black as a pot"),
                   ("your name", "People said, \"Hello, you,\" and did not know more"),
                   ("your shadow", "The sun shone, but nobody walked beside {him} on the wall"),
                   ("your sweet tooth", "Honey tasted like dust")]},
        story="""
        - {opening}
        ~ {trait}
        - One evening {met}.
        / One night, on the way home, {met}.
        - "I give one wish," said the {giver}, "but every wish has a price."
        / "Make a wish," said the {giver}. "The price is small. Very small."

        - "I want {wish}," said {hero}. "What is the price?"
        / {hero} did not think for long. "Give me {wish}!"
        - "Only {price}," said the {giver}. "You will not miss it."
        / "I will take {price}," said the {giver}. "Do you agree?"
        - {hero} nodded. {gift}
        / {hero} agreed, and it was done. {gift}

        ~ At first {he} was happy.
        / For one day {he} was the happiest person in the world.
        - But soon something was missing. {miss}.
        / Then came the second day. {miss}.
        ~ The days grew long and gray.
        / {His} friends came less and less.
        / Even the cat looked at {him} strangely.
        ~ "What good is {wish} now?" {hero} asked the wall.
        / {He} sat alone and understood what {he} had sold.

        - {hero} ran back and called, "Take it all! I want to be as I was!"
        / In the morning {hero} went back to the {giver}. "I was foolish," {he} said.
        - "Most people never come back," said the {giver}, and smiled.
        / "Good," said the {giver}. "Now you know what it is worth."
        - In a wink everything was as before, and {hero} danced all the way home.
        / The {giver} said one strange word, and {hero} was {himself} again.
        - The best things we own do not fit in a bag.
        / Never sell what you cannot buy again.
        / That night {hero} had only {dish}, and it was the best supper of {his} life.
        / The {giver} kept nothing, except a good story.
        """,
    ),
    Plot(
        name="a stranger at the door",
        titles=["A knock in the night", "{hero} and the stranger",
                "The stranger at {hero}'s door",
                "The stranger's {gift}", "{hero} opens the door", "The night of the {rain}"],
        facts={"gift magic": [
                   ("gray stone", "The stone was warm, and it kept the house warm all winter."),
                   ("small seed", "From the seed grew a tree with flowers like little lamps."),
                   ("old spoon", "Any soup that the spoon touched was enough for one guest more."),
                   ("tin whistle", "When {he} blew it, lost people always found the road."),
                   ("blue button", "Whoever wore the button never felt alone."),
                   ("bent nail", "A coat on that nail was always dry by morning."),
                   ("brass bell", "The bell rang softly whenever a friend was near.")],
               "who_came": ["an old man with bare feet", "an old woman with a thin cloak",
                            "a wet traveller with a big bag", "a tall man with a gray hat",
                            "a small woman with bright eyes"]},
        story="""
        - {opening}
        ~ {trait}
        - One night the {rain} beat on the roof, and the wind cried in the chimney.
        / It was a wild night. The {rain} flew past the window, and the lamp shook.
        - Then came a knock at the door. Knock, knock, knock.
        / Then somebody knocked, three times.
        ~ "Do not open," said the neighbour through the wall. "Who knows who it is?"
        / The cat hid behind the pot.

        - {hero} opened the door. There stood {who_came}.
        / {hero} lifted the latch, and in came {who_came}.
        ~ "Everyone else sent me away," said the stranger.
        / "I have knocked at nine doors," said the stranger. "Yours is the tenth."
        - "Then you must be hungry," said {hero}.
        / "Come to the fire," said {hero}. "There is not much, but there is enough."
        - {He} had only one bowl of {dish}, so {he} found a second spoon.
        / {He} cut {his} supper of {dish} in two and gave away the bigger half.
        ~ The stranger slept in the bed, and {hero} slept on the floor with the cat.
        / They talked until the fire was low, and the storm sounded far away.

        - In the morning the sky was clear, and the stranger was gone.
        / When the sun came up, the bed was empty and neatly made.
        - On the table lay {a gift}.
        / Only {a gift} lay on the pillow.
        ~ "What can I do with {a gift}?" said {hero}, but {he} kept it.
        / It was not much to look at, but {hero} put it on the shelf.
        - {magic}

        - Since then {hero} never asks who is knocking. {He} just opens the door.
        / Now, on stormy nights, {hero} puts two bowls on the table.
        / {hero} never saw the stranger again, but every night {he} left a lamp in the window.
        ~ A warm heart is the best house.
        / What you share in the dark comes back with the light.
        """,
    ),
    Plot(
        name="a promise mended",
        titles=["{hero}'s promise", "{hero} and the {thing}", "The promise and the {thing}",
                "{hero} forgets the {thing}", "How {hero} mended a promise"],
        facts={"thing need fix": [
                   ("lantern", "for the night parade of the children",
                    "made twelve lanterns, one for each child"),
                   ("drum", "for the music at the wedding",
                    "drummed under the window until the bride danced in the yard"),
                   ("cake", "for the birthday of little Polly",
                    "baked a cake as tall as Polly"),
                   ("ladder", "for the plum harvest",
                    "picked plums by moonlight until every basket was full"),
                   ("kite", "for the great kite day",
                    "made a kite so big that three children held the string"),
                   ("blanket", "for the new baby",
                    "sat up all night and finished a blanket with stars on it"),
                   ("boat", "to bring the goats to the good grass",
                    "carried the goats across, one by one, on {his} own back")],
               "instead": ["fell asleep under the {tree}", "stopped to watch two snails race",
                           "followed a band of music to the next town",
                           "began to skip stones at the {water} and could not stop",
                           "sat down to hear a story that had no end"]},
        story="""
        - {opening}
        ~ {trait}
        - "I will bring you a {thing} tomorrow," {he} promised {friend}, "{need}."
        / {hero} gave {his} word to {friend}: a {thing} by tomorrow, {need}.
        ~ {friend} smiled and told everyone.
        / "I trust you," said {friend}.

        - But the next day was warm and lazy.
        / But the next day the sun was gold and the grass was soft.
        - {hero} {instead}.
        - When {he} remembered, the stars were out.
        / Suddenly it was dark. "Oh no," {he} said. "The {thing}!"
        - {He} ran, but {he} was too late.
        / {He} came running with empty hands.

        - {friend} sat on the step and did not look up.
        / {friend}'s lamp was out, and the door was shut.
        ~ "You gave your word," said {friend} quietly, and that was worse than shouting.
        / "We waited," said {friend}. Nobody said anything more.
        ~ {hero} could have said that {he} was ill.
        / A hundred excuses came into {hero}'s head.
        - {hero} said, "I forgot. It was my fault, and I am sorry."
        / {hero} told the truth. "I was playing, and I forgot. I am sorry."

        - That night {hero} did not sleep. {He} {fix}.
        / Saying sorry was a start, so {hero} began to work. {He} {fix}.
        ~ {friend} laughed at last and made room on the step.
        / At last {friend} held out {friend_his} hand, and {hero} took it.
        - A broken promise can be mended, but you must use your own hands.
        / Sorry is a small word. It grows when you work.
        / Since then {hero} ties a red thread to {his} thumb when {he} gives {his} word.
        / And {hero} was never late again, except once, because of a very good snail.
        """,
    ),
    Plot(
        name="the riddle",
        titles=["{hero} and the riddle", "The riddle at the {gate}", "The guard of the {gate}",
                "{hero} at the {gate}", "A riddle for {hero}"],
        facts={"gate": ["bridge", "gate", "tower", "ferry", "garden wall", "mountain pass"],
               "guard": ["a guard with a long beard", "a very fat goose",
                         "an old lion with glasses",
                         "a woman as tall as a door", "a tiny man with a huge key"],
               "riddle answer clue": [
                   ("What grows when you share it?", "Joy",
                    "{He} thought of {his} birthday, when all {his} friends came and laughed"),
                   ("What has a bed but never sleeps?", "A river",
                    "{He} listened, and heard water running in the dark"),
                   ("What can fill a room and weighs nothing?", "Light",
                    "{He} saw a candle shine through a window"),
                   ("What do you break when you say its name?", "Silence",
                    "It became so quiet that {he} was afraid to speak"),
                   ("What has many teeth and never bites?", "A comb",
                    "The wind blew {his} hair into {his} eyes"),
                   ("What can you give away and still keep?", "My word",
                    "{He} thought of {his} promise to be home for supper"),
                   ("What runs beside you all day and leaves at night?", "My shadow",
                    "{He} looked down at the grass and saw {his} own dark shape"),
                   ("What gets bigger when you take something out?", "A hole",
                    "{He} put a finger into the torn pocket of {his} coat"),
                   ("What has a face and two hands but no legs?", "A clock",
                    "Far away, a bell rang twelve times"),
                   ("What flies all over the world without wings?", "A story",
                    "{He} remembered the stories of {his} grandmother")]},
        story="""
        - {opening}
        ~ {trait}
        - One day {he} had to take {treats} to {his} sick aunt, far away.
        / One day {his} grandmother sent {him} to the city to sell {treats}.
        / One day {he} set out to see the world, with {treats} in {his} bag.
        - On the third morning {he} came to {a gate}, and there sat {guard}.
        / Soon {he} reached {a gate}. In front of it sat {guard}.

        - "Nobody passes without an answer," said the guard. "{riddle}"
        / "Stop!" said the guard. "First tell me this. {riddle}"
        - "A sausage?" said {hero}. "No," said the guard.
        / "Is it a potato?" asked {hero}. The guard sighed. "Everyone says potato."
        / "My uncle?" said {hero}. "No, it is not your uncle," said the guard.

        - {hero} sat down to think.
        / So {hero} sat on a stone and ate one of the {treats}.
        ~ {He} thought until {his} head was warm.
        / {He} thought forward, and {he} thought backward.
        - {clue}.
        - Then {he} jumped up. "{answer}!" cried {hero}.
        / "I have it!" cried {hero}. "{answer}!"

        ~ The guard smiled for the first time in seven years.
        / The guard laughed, and the sound rang over the hills.
        - "Right!" said the guard. "People always push. You are the first who thought."
        / "Right!" said the guard. "It is dull to sit here with only wrong answers."
        - {hero} gave the guard some {treats}, and the way was open.
        / The guard let {him} pass, and {hero} left two {treats} on the stone.
        ~ The answer is often near. Sit still, and it will come.
        / A good question is worth a long walk.
        / And the guard went back to looking for a harder riddle.
        """,
    ),
    Plot(
        name="the bridge",
        titles=["{hero} builds a bridge", "The bridge of {thing}", "{hero} and the wide stream",
                "The bridge that {hero} built", "One plank more"],
        facts={"thing": ["old doors", "broken boats", "wine barrels", "school benches",
                         "bed boards",
                         "cart wheels"],
               "reason": ["a lost sheep", "a bell that rang too early", "a bad joke and a hat",
                          "the price of a cow", "a pie that was never paid for",
                          "who made the better soup"]},
        story="""
        - {opening}
        - Behind the houses ran a wide stream, and there was no bridge.
        / Behind the houses ran a wide stream, and nobody ever crossed it.
        - Long ago the people on the two sides had quarrelled about {reason}.
        / "We do not talk to them," people said, because of {reason}, long ago.

        - Each evening {hero} heard somebody singing on the other side.
        / One evening {hero} saw somebody wave from the other side.
        ~ {He} wanted to know who it was.
        / {He} waved back, and {his} heart was light.
        - So {hero} began to build a bridge.
        / The next morning {hero} brought a hammer and began to build.
        - {He} had no good wood, so {he} used {thing}.
        / {He} asked for wood, but people gave {him} only {thing}.

        ~ "It will fall down," said the old men, and they sat down to watch.
        / "Foolish {hero}," said the old men. "It will never reach."
        ~ Each day the bridge grew by one plank.
        / It grew slowly, one plank in the morning and one at night.
        - In the middle, {he} had no more wood and no more nails.
        / Halfway across, everything was used up.
        - Then {he} heard a hammer in the mist. Tap, tap, tap.
        / Then, out of the mist, came another sound. Knock, knock, knock.
        - It was {friend}, who was building from the other side!
        / There stood {friend} from the other side, with a hammer and half a bridge.

        - They put the last plank down together and shook hands.
        / "You were the one who sang," said {hero}. "You were the one who waved," said {friend}.
        ~ By evening everyone from both sides was on the bridge, eating {treats}.
        / First the children crossed, then the dogs, and at last the old men.
        ~ Nobody could remember why {reason} had been so important.
        / The old men shook hands and then began to talk about {reason}, but only for fun.
        - {hero} sat in the middle, with one foot on each side.
        / {hero} and {friend} sat in the middle and sang the song together.
        ~ If you build toward somebody, somebody may build toward you.
        / A bridge begins with the first plank.
        """,
    ),
    Plot(
        name="the storm",
        titles=["{hero} and the storm", "The light in the {tower}",
                "The night of the great storm",
                "{hero} keeps the light", "The lamp in the {tower}"],
        facts={"tower": ["tower", "watch tower", "old mill", "bell tower", "high barn"],
               "lost": ["the herd of goats and the two herd boys",
                        "the school children and their teacher",
                        "three carts coming home from market",
                        "two wedding guests with a fiddle and a cake",
                        "the market women with their baskets"],
               "fuel": ["{his} old table", "{his} best chair",
                        "the shelf with all {his} pots on it",
                        "{his} own bed", "the door of the hen house"]},
        story="""
        - {opening}
        ~ {trait}
        - One evening black clouds came over the hills.
        / One evening the wind turned, and the birds became silent.
        - Soon the {rain} was so thick that nobody could see the road.
        / Then the storm broke, and the {rain} covered everything.
        - And somewhere out there in the dark were {lost}.
        / "They are still out there!" cried {a helper}. Nobody had seen {lost}.

        ~ "They need a light," said {hero}.
        / {hero} thought quickly. "A light!" {he} said. "They must see a light."
        - {He} took {his} lamp and climbed up to the {tower}.
        / {He} ran to the {tower} with a lamp under {his} coat.
        - The wind blew it out once, twice, three times.
        / Puff! The wind blew the lamp out.
        - {hero} made a fire instead, and held a blanket against the wind.
        / So {he} lit a fire in an iron pot and sat close to guard it.
        - When the wood was gone, {he} burned {fuel}.
        / At midnight there was no more wood, so {he} gave the fire {fuel}.

        ~ {His} eyes were red and {his} arms were tired, but {he} did not sleep.
        / {He} sang to keep awake, and {he} sang very badly.
        ~ Then a voice called through the storm, and another answered.
        / Just before morning, {he} heard a small bell, and then a shout.
        - One by one they came in, tired and cold and laughing.
        / At dawn they came in, hand in hand. They had seen the light.

        ~ In the morning the storm was gone, and the world was still and bright.
        / When the sun rose, the sky was as clear as glass.
        - Everyone came to thank {hero}, and they saw what {he} had burned.
        / "But what did you burn all night, {hero}?" the people asked.
        ~ By noon they had made {him} a new one, with a star cut in the wood.
        / Before evening all the neighbours had built {him} a new one.
        - One small light is enough, if somebody keeps it.
        / The dark is big, but a light is stubborn.
        / After that {hero} went to bed and slept until Tuesday.
        """,
    ),
    Plot(
        name="mistaken identity",
        titles=["{hero} and the wrong coat", "{hero} and {the_one}", "{hero} is not {the_one}",
                "The wrong guest", "How {hero} became {the_one}"],
        facts={"the_one task how": [
            ("the king's doctor", "heal the queen's sad heart",
             "took the queen for a walk in the rain, and the queen laughed in every puddle"),
            ("the royal cook", "cook for a hundred guests",
             "made one huge pot of {dish}, and the guests asked for more"),
            ("the music master", "teach the prince to sing",
             "let the prince bang on pots, and the prince smiled at last"),
            ("the famous judge", "judge between two angry sisters",
             "asked the sisters to say what they liked about each other"),
            ("the dancing master", "teach the duke to dance",
             "said that everyone must dance badly, and the duke was the best at it"),
            ("the great poet", "read a poem to the queen",
             "told about home, the {water} and the {tree}, and the queen wiped her eyes"),
            ("the lion tamer", "calm the king's angry cat",
             "sat down quietly, and the cat fell asleep on {his} knees")]},
        story="""
        - {opening}
        - One cold day {he} went to the palace to sell {treats}.
        / One day {he} came to the palace to ask for work.
        - On the road {he} had found a fine blue coat and put it on.
        / It was cold, so {he} wore a fine coat that somebody had left on a fence.
        - "There you are at last!" cried the guard. "You are {the_one}!"
        / At the gate a guard bowed. "Welcome! You must be {the_one}."

        - "I am only {a trade}," said {hero}, but nobody listened.
        / "There is a mistake," said {hero}, but the doors were already open.
        - They pulled {him} inside and asked {him} to {task}.
        / Before {he} could say more, {he} had to {task}.
        ~ {hero}'s knees shook like {a tree} in the wind.
        / {hero} wished for a mouse hole, and for being a mouse.
        ~ "I must not lie," {he} thought, "but perhaps I can help."
        / "Well," {he} thought, "I will do what my grandmother would do."

        - So {he} {how}.
        ~ Everyone clapped, and the guard clapped the loudest.
        / Nobody had seen anything like it.
        - Just then the door opened, and in came the true guest, without a coat.
        / At that moment the real one arrived, cold and cross and without a coat.

        - {hero} turned red and gave back the coat. "I am {hero}, {a trade}," {he} said.
        / "This is your coat," said {hero}. "I tried to tell them."
        ~ The true guest had heard about it all and began to laugh.
        / The queen looked from one to the other, and began to laugh.
        ~ "You could not have done it better," said the king.
        - {hero} went home with a coat of {his} own and a good story.
        / They gave {hero} a warm red coat and a place at the table.
        ~ It is not the coat that helps. It is the person inside.
        / You do not need a great name to do a good thing.
        / The guard now asks everybody's name, even the cat's.
        """,
    ),
    Plot(
        name="the frightened giant",
        titles=["The giant who was afraid of {fear}", "{hero} and the giant",
                "{hero} and the frightened giant",
                "Why the giant cried", "The giant and the {thing}"],
        facts={"fear thing cure": [
            ("the dark", "lantern", "{hero} hung a lantern in the cave and showed him how to light it"),
            ("mice", "mouse", "{hero} put a mouse on his thumb, and the mouse went to sleep there"),
            ("thunder", "drum", "{hero} gave him a drum, so that he could answer the thunder"),
            ("the moon", "window", "{hero} cut a window in the wall, so that the moon could say good night"),
            ("bees", "honey pot", "{hero} gave him a spoon of honey, and told him who had made it"),
            ("water", "bath", "{hero} filled a little bath, and he put in one toe, and then two"),
            ("frogs", "song", "{hero} taught him to sing with the frogs, one deep note at a time"),
            ("his own snoring", "pillow",
             "{hero} made him a pillow from forty sacks of feathers")]},
        story="""
        - {opening}
        ~ {trait}
        - Every night a great roar came from the mountain.
        / At night a terrible noise rolled down from the hill.
        - "It is the giant," people whispered. "He is angry, and he will eat us."
        / "The giant is hungry," people said, and they shut their doors.
        ~ But to {hero} it sounded like crying.
        / But {hero} listened well, and thought, "That is not how anger sounds."

        - So one night {he} took a stick and some {treats} and climbed up.
        / The next evening {hero} put {treats} in {his} bag and went up the hill.
        - In a cave sat a giant as big as a barn, with a blanket over his head.
        / There sat the giant, bigger than a house, and his tears made a small lake.
        ~ "Please do not hurt me!" cried the giant.
        / "Is it gone?" asked the giant in a tiny voice.
        ~ "Me?" said {hero}. "I came up to my bravest. I only reach your knee."
        / "I am only {hero}," {he} said. "I am no bigger than your shoe."

        - "Do not laugh," said the giant. He was afraid of {fear}.
        / The giant told {him} his secret. He was afraid of {fear}.
        ~ {hero} did not laugh. "I was once afraid of my own hat," {he} said.
        / "Everyone is afraid of something," said {hero}. "I am afraid of geese."
        - Then {cure}.
        ~ It took seven nights, but on the eighth the giant smiled.
        / Little by little the shaking stopped.

        ~ After that the nights were quiet.
        / The next morning the giant came down, on the tips of his toes.
        ~ The giant carried stones for the new school, and the children slid down his back.
        / The giant held the ladder for everyone, and children played in his pockets.
        - And now {hero} had the biggest friend in the world.
        / And now {hero} had a friend who could see over all the trees.
        ~ Those who roar may only need a hand to hold.
        / Nobody is too big to be afraid, and nobody is too small to help.
        """,
    ),
    Plot(
        name="the fallen star",
        titles=["{hero} and the fallen star", "The star in the {spot}", "The star that fell",
                "{hero} carries a star", "How the star went home"],
        facts={"spot": ["water jar", "hen house", "hay", "well", "bean field", "flower pot",
                        "laundry"],
               "way": ["the top of the {tree}", "the roof of the bell tower",
                       "the top of the highest hill", "the tail of a long red kite",
                       "the back of a wild goose"],
               "last": ["winks twice", "turns a little blue", "shines right into {his} window",
                        "hops, as if it were laughing", "throws a tiny spark"]},
        story="""
        - {opening}
        ~ {trait}
        - One clear night something bright fell out of the sky.
        / One night {he} heard a small sound, like a spoon on a glass.
        - {hero} ran outside and found it in the {spot}. It was a star!
        / In the {spot} lay a star, no bigger than an orange.

        - "I leaned too far," said the star. "I wanted to see your house."
        / "I sneezed," said the star, "and I fell."
        / "I was counting people," said the star, "and I fell asleep."
        ~ It was warm, and it smelled of snow and pepper.
        / It hummed softly, like a kettle.
        - {hero} wanted to keep it for ever.
        / "Stay with me," said {hero}. "You can be my lamp."
        - But with each hour the star grew dimmer.
        / But the star turned pale, and its hum grew thin.
        ~ "A star cannot live under a roof," it whispered.
        / "There is a hole in the sky where I belong," it said.

        ~ {hero} was sad, but {he} wrapped the star in {his} scarf.
        / {hero} looked up, saw the dark hole, and nodded.
        - First {he} threw it up as high as {he} could. It came down on a goat.
        / First {he} threw it with all {his} strength. It came down on a sleeping goat.
        - Then {a helper} told {him} to try {way}.
        / Then {a helper} pointed to {way}.
        - There {hero} let the star go. It rose, and rose, and clicked into its place.
        / {hero} carried the star there. It gave one jump, and the night pulled it home.

        - Now, when {hero} says good night, one star {last}.
        / Each night {hero} waves, and each night one star {last}.
        - You keep a friend best when you do not hold too tight.
        / Some things are ours only when we let them go.
        / And the goat? It still glows a little, on one side.
        / {His} scarf has a burn in it, shaped like a smile.
        """,
    ),
    Plot(
        name="a song to learn",
        titles=["{hero} learns a song", "The song of the {bird}", "{hero} and the {bird}",
                "The {bird} teaches {hero}", "The song about {about}"],
        facts={"bird": ["blackbird", "green parrot", "old crow", "little owl", "gray dove",
                        "yellow finch"],
               "about": ["the rain", "the moon", "home", "bread and butter", "the river",
                         "old shoes"],
               "hum": ["a rusty gate", "a hungry goat", "a wet boot", "a cat in a bag",
                       "an old door"]},
        story="""
        - {opening}
        ~ {trait}
        - {He} loved music, but when {he} sang, it sounded like {hum}.
        / {He} wanted to sing, but {his} voice was like {hum}.

        - One morning {hero} heard {a bird} in the {tree}. It sang about {about}.
        / In the {tree} lived {a bird}, which sang every evening about {about}.
        - "Teach me your song," said {hero}.
        / "Please teach me that song," {he} called.
        ~ "It has three notes," said the {bird}. "The third one is hard."
        / "Come each day," said the {bird}, "and bring something to eat."

        - On the first day {he} learned to breathe.
        / On the first day {he} had to listen, and only listen.
        - On the second day {he} sang so badly that a cow sat down.
        / Then {he} sang one note, and all the dogs went home.
        ~ "Good," said the {bird}. "It was worse yesterday."
        / "Again," said the {bird}, and put its head under its wing.
        ~ {hero} sang in the bath, in the field and under the blanket.

        - At the harvest feast the singer was ill, and nobody knew what to do.
        / Then came the spring feast, and the fiddle broke in the first dance.
        - {hero} stood up. {His} knees shook, and {he} began to sing about {about}.
        / "I know one song," said {hero}, and {he} sang about {about}.
        ~ The first note was small, and the second was warm.
        / The room became quiet, and even the soup stopped bubbling.
        - On the third note, the {bird} joined in from the window.
        / Outside in the dark, the {bird} sang along.

        - Everyone asked {hero} to sing it again, and {he} did, four times.
        / When {hero} sat down, {his} grandmother wiped her eyes with a cake.
        - The {bird} said only, "It was worse yesterday."
        / Every great song was once a bad one.
        / Practice is a slow bird, but it gets there.
        / Now the dogs stay and listen.
        """,
    ),
    Plot(
        name="a shared meal",
        titles=["{hero} and the small pot", "One pot of {dish}", "Supper at {hero}'s house",
                "{hero} has many guests", "One more spoon, {hero}!"],
        facts={"last": ["a judge with a wet hat", "a thin dog", "a lost bride",
                        "two hungry twins",
                        "a clown without a circus", "a man with a goose under his arm"],
               "brought": ["an onion", "a carrot", "one egg", "a piece of cheese",
                           "a bag of salt"],
               "brought_too": ["a bunch of herbs", "three potatoes", "a pumpkin",
                               "a spoon of butter",
                               "a very good joke"]},
        story="""
        - {opening}
        ~ {trait}
        - One evening {he} cooked a small pot of {dish}, just enough for one.
        / {He} had one small pot, and tonight it was full of {dish}.

        - Then somebody knocked. It was {a helper}. "Something smells good," said the {helper}.
        / Just then {a helper} looked in. "I have had no supper," said the {helper}.
        - "Sit down," said {hero}. "There is enough for two."
        / "Two can eat from one pot," said {hero}, and {he} moved over.
        - The {helper} had {brought}, and into the pot it went.
        / "I can bring {brought}," said the {helper}.

        - Then came {friend} from next door, with {brought_too}.
        / The next knock was {friend}, who brought {brought_too}.
        ~ {hero} put more water in the pot.
        / {hero} stirred the pot and counted the spoons.
        - At last there came {last}.
        / When they were about to eat, in came {last}.
        ~ "Oh dear," whispered {friend}. "Now there is not enough."
        / Everyone looked into the little pot and then at the floor.
        - "Pull up a box," said {hero}. "We will eat slowly."
        / "Come in, come in," said {hero}. "The pot is small, but the table is long."

        ~ They ate, and talked, and ate, and the pot was still not empty.
        / They told so many stories that nobody counted the spoons.
        - "It must be a magic pot," said {friend}.
        / "How is it done?" asked the {helper}, licking the spoon.
        - {hero} smiled. "Everyone put something in," {he} said.
        / "It is an old trick," said {hero}. "Each of you brought a little."
        - A shared pot has no bottom.
        / Food for one becomes a feast when the door is open.
        / There was one spoonful left, and the cat knew about it.
        / It rained all night, and nobody noticed.
        """,
    ),
    Plot(
        name="a quarrel of neighbours",
        titles=["{hero} and the quarrel", "The quarrel about the {thing}",
                "Whose {thing} is it?",
                "{hero} and the two neighbours", "{friend} and the other {thing}"],
        facts={"thing": ["pumpkin", "hen", "pear tree", "ladder", "bench", "rose bush",
                         "bucket"],
               "other": ["the butcher", "the teacher", "the bell maker", "the post master"]},
        story="""
        - {opening}
        ~ {trait}
        - On one side of {him} lived {friend}, and on the other side lived {other}.
        / {His} neighbours were {friend}, on the left, and {other}, on the right.
        - For years they had been friends. Then came the quarrel about the {thing}.
        / One spring the two began to quarrel, and it was all about {a thing}.

        - "It is my {thing}!" shouted {friend} each morning.
        / "The {thing} is mine!" said {friend}.
        - "It was always mine!" shouted {other} each night.
        / "It is mine, and so is your hat!" said {other}.
        ~ Soon they did not greet each other, and their dogs did not either.
        / They built a wall of boxes, and {hero} had to climb over it.

        - {hero} could not sleep, so {he} made a plan.
        / {hero} was tired of the noise, and {he} thought about it all night.
        - {He} wrote two notes. Each said, "I am sorry. Please come to supper at {hero}'s house."
        / {He} told {friend} that {other} was sad, and told {other} that {friend} was sad.
        - In the evening both came, and both were surprised.
        / That evening both stood at {his} door with red ears.
        ~ On the table was one big pie, and only one spoon.
        / {hero} gave them one bench to sit on, and it was very short.

        ~ First nobody spoke. Then {friend} sneezed, and {other} said, "Bless you."
        / It was silent. Then the cat stole the fish, and both of them laughed.
        ~ "What do you really want it for?" asked {hero}.
        / "Why is the {thing} so important?" asked {hero}.
        - "I only wanted you to ask me," said {friend}. "And I wanted a thank you," said {other}.
        / "I thought that you did not like me," said {friend}. "I thought so too," said {other}.

        - Now the {thing} belongs to both of them, and to {hero} on Sundays.
        / The next day {hero} made tea for all three.
        - A quarrel is hungry. Do not feed it.
        / It takes two to quarrel, and sometimes a third to make peace.
        / The dogs had been friends the whole time.
        / They still argue, but only about who says thank you first.
        """,
    ),
    Plot(
        name="the clock that stopped",
        titles=["{hero} and the clock that stopped", "The day the clock stopped",
                "{hero} climbs the tower",
                "The {guest} in the clock", "The clock at ten past {hour}"],
        facts={"guest little": [("swallow", "three hungry chicks"),
                                ("gray cat", "four blind kittens"),
                                ("squirrel", "a winter's heap of nuts"),
                                ("bat", "one very small baby"),
                                ("owl", "two round eggs"), ("dove", "two white eggs")],
               "hour": ["two", "four", "six", "nine", "ten", "eleven"],
               "muddle": ["The teacher rang for lunch before breakfast was over.",
                          "The cock crowed at supper, just to be sure.",
                          "The baker baked three times and then not at all.",
                          "People said good night and good morning at once.",
                          "The mayor came to his own party a day late."]},
        story="""
        - {opening}
        ~ {trait}
        - There was a big clock in a tower, and everyone lived by its bell.
        / High up in the tower was a clock, and its bell told people what to do.
        - One day it stopped at ten past {hour}.
        / One night, at ten past {hour}, the clock stood still.

        ~ {muddle}
        ~ Nobody knew when to be tired.
        / Nobody knew when to be hungry, so some people ate all day.
        ~ "The clock is too old," said the mayor.
        / "We must buy a new clock," said the mayor, "and that costs a cow."
        ~ "May I look first?" asked {hero}.
        / "Let me climb up and see," said {hero}.

        - {He} climbed a hundred steps, and {his} lamp threw long shadows.
        / Up and up {he} climbed, past the dust and the spiders.
        - Behind the great wheel {he} heard a tiny sound.
        / Something moved between the wheels.
        - There sat {a guest}, with {little}.
        / It was {a guest}! It was guarding {little}.
        ~ It looked at {hero}, and {hero} looked at it.
        / "Do not be afraid," whispered {hero}.
        ~ {He} could have pushed it out with one hand.

        - {hero} went down and said, "The clock is not broken. It is being kind."
        / "The clock will go again," {hero} told the mayor, "but not this month."
        ~ So for some weeks {hero} was the clock, and {he} rang a hand bell in the lanes.
        / For some weeks {hero} walked around and called the hours, more or less.
        - When the {guest} was ready to leave, the clock said tick, and then tock.
        / One morning the {guest} moved out, and the big bell rang again.
        - There is always time to be kind.
        / Even a clock may rest for a good reason.
        / And {hero} was glad, because {he} had always been a little late.
        / Every spring it stops again, and nobody minds.
        """,
    ),
    Plot(
        name="a walk in the dark",
        titles=["{hero} and the dark road", "The night the lamp went out", "{hero} walks home",
                "The {glow} on the dark road", "{hero} and the {glow}"],
        facts={"glow": ["fireflies", "white stones", "glow worms", "moonlit mushrooms",
                        "white flowers"],
               "carry": ["a bottle of medicine for {his} aunt", "a letter for {his} brother",
                         "a pot of soup for a sick friend", "a new hat for {his} father",
                         "a warm loaf for {his} grandmother"],
               "shape was": [("a bear with open arms", "a bush"),
                             ("a man without a head", "a post with a coat"),
                             ("a snake across the road", "a rope"),
                             ("two green eyes", "two cats"),
                             ("a witch with long fingers", "an old tree")]},
        story="""
        - {opening}
        ~ {trait}
        - One evening {he} had to carry {carry}, all the way through the wood.
        / One evening {he} had to go through the wood with {carry}.
        - Halfway there, the wind blew out {his} lamp.
        / In the middle of the wood, {his} lamp went out.

        ~ It was as dark as the inside of a boot.
        / {hero} could not see {his} own hand.
        ~ {His} heart went boom, boom, boom.
        / "I am not afraid," said {hero}, in a very high voice.
        - In front of {him} stood {shape}!
        / Then {he} saw something terrible. It was {shape}!
        - {He} wanted to run, but {he} took one step closer. It was only {was}.
        / {He} shut {his} eyes, and reached out, and laughed. It was only {was}.

        ~ "Sit down," {he} told {himself}, "and wait until your eyes wake up."
        / {hero} remembered what {his} grandmother said. "The dark is only shy."
        - {He} waited, and slowly the dark was not so dark.
        / {He} stood still, and little by little {he} began to see.
        - There were {glow} on both sides of the road, like tiny lamps.
        / All along the road shone {glow}, small and silver.
        - {hero} followed them, and {he} hummed a little song.
        / Step by step {hero} followed the {glow}.

        - Soon {he} saw a yellow window, and {he} knocked on the door.
        / At last there was a door, and a warm voice, and a chair.
        - "Were you afraid, {hero}?" they asked. "Only of {was}," said {hero}.
        / "Did you come without a lamp?" they asked. "I had hundreds," said {hero}.
        - If you wait a little, the dark will show you its lights.
        / Being brave is being afraid and taking one more step.
        / On the way home {he} said good night to every one of them.
        / Since then {hero} always greets {was} politely.
        """,
    ),
    Plot(
        name="the letter with no name",
        titles=["{hero} and the letter with no name", "A letter for nobody",
                "The letter that {sign}",
                "{hero} carries a letter", "The {color} letter"],
        facts={"color": ["blue", "yellow", "red", "green", "white"],
               "sign clue owner news": [
                   ("smelled of bread", "It smelled of bread", "the old baker by the bridge",
                    "Her son was coming home from the sea."),
                   ("smelled of the sea", "It smelled of the sea", "the captain's wife",
                    "The ship was safe, and so was the cat."),
                   ("hummed", "When {he} shook it, it hummed like a bee",
                    "the bee keeper on the hill",
                    "Her sister had found a new queen bee for her."),
                   ("had sand in it", "There was sand in it", "the nurse from the far desert",
                    "Her first grandchild had been born."),
                   ("had a paw print", "On the back was a paw print",
                    "the woman who had lost her dog",
                    "The dog was well, and it was waiting at the next farm."),
                   ("had music on it", "On the back was a line of music",
                    "the lonely fiddle player",
                    "Her old band wanted her back.")]},
        story="""
        - {opening}
        ~ {trait}
        - One morning a {color} letter lay at the bottom of the bag. It had no name on it.
        / One morning {he} found a {color} letter with no name on it.
        ~ "Throw it away," said the post master.
        / "A letter with no name belongs to nobody," said the post master.
        - "Somebody is waiting for it," said {hero}.
        / {hero} put it in {his} coat. "It belongs to somebody," {he} said.

        ~ First {he} asked the butcher, who only got bills.
        / First {he} knocked at the big house. "We have enough letters," they said.
        - Then {he} asked {a helper}. "I wish it were mine," said the {helper}, "but nobody writes to me."
        / Then {he} asked {a helper}, who held it up to the light and shook {helper_his} head.
        ~ {He} asked the dogs, and the dogs only barked.

        - That evening {hero} looked at the letter again. {clue}!
        / {hero} sat down and studied it with care. {clue}!
        - "Of course!" {he} said. "It is for {owner}."
        / Then {he} knew. It was for {owner}.
        ~ {He} ran through the lanes, and {his} bag danced on {his} back.
        / It was late, but {he} went at once.

        ~ {hero} knocked, and the door opened a little.
        / A lamp was still burning when {hero} knocked.
        - The woman read it, first with a frown and then with a smile. {news}
        / The woman opened it with shaking hands. {news}
        - She kissed {hero} on both cheeks and gave {him} {treats}.
        / She danced around the table with {hero} and the {color} letter.
        ~ And the next day {hero} wrote a letter, with a name on it, to the {helper}.
        - Good news will always find a door, if somebody carries it.
        / Somebody is always waiting. It is good to knock.
        / {hero} walked home under the stars, and the bag was light.
        """,
        trades=("letter carrier",),
    ),
    Plot(
        name="the slow seed",
        titles=["{hero} and the slow seed", "{hero}'s {plant}", "The last {plant}",
                "Wait, {hero}, wait!", "The seed that slept"],
        facts={"plant end": [
                   ("sunflower", "It was so tall that the birds used it as a tower."),
                   ("pumpkin", "It was so big that a family of mice rented a room in it."),
                   ("rose", "It smelled so sweet that two old enemies shook hands beside it."),
                   ("melon", "It was so sweet that the whole lane had to wash its chin."),
                   ("bean", "It grew over the house and down the other side."),
                   ("lily", "It opened at night, and the moon came down to look.")]},
        story="""
        - {opening}
        ~ {trait}
        - In spring every child got one {plant} seed, and {hero} got the smallest.
        / One spring an old woman gave {plant} seeds to everyone. The last and smallest was for {hero}.
        - {He} planted it in a blue pot by the window.
        / {He} put it in the warm earth and gave it a drink.

        - In a week {friend}'s seed was up.
        / Soon {friend} had a green leaf, and then two.
        - But {hero}'s pot was only brown.
        / In {hero}'s pot there was nothing at all.
        ~ {He} gave it water, sun and, once, a spoon of soup.
        / {He} sang to it and told it what was new.
        - "Your seed is dead," said {friend}. "Throw it out."
        / "Maybe it is a stone," said {friend}.
        ~ "Maybe it is a late sleeper," said {hero}. "I am one too."
        / "It is only thinking," said {hero}.

        ~ Summer came, and the other plants grew and faded.
        / Then came a hot week, and all the other plants dried up.
        ~ {hero} forgot to be sad, but {he} did not forget the water.
        - One morning there was a crack in the earth, and a small green nose.
        / Then, when nobody was looking, something green came up.
        - It grew a hand each day. {end}
        / Now it could not be stopped. {end}

        ~ "What did you do?" asked {friend}. "I waited," said {hero}.
        / Everyone wanted to know {hero}'s secret. "I waited," {he} said, "and I sang."
        - In autumn {hero} had a hundred seeds, and the first was for {friend}.
        / {hero} kept one seed and gave all the others away.
        - Slow is not the same as never.
        / Some good things sleep long before they wake.
        / It was the smallest of them, of course.
        / Nobody ever found out if it was the water or the song.
        """,
    ),
    Plot(
        name="the one who could not laugh",
        titles=["{hero} and the sad {ruler}", "The {ruler} who could not laugh",
                "{hero} at the palace",
                "The {ruler} and the {fall}", "How {hero} made the {ruler} laugh"],
        facts={"ruler": ["queen", "king", "princess", "prince", "sultan"],
               "fall": ["soup", "pudding", "goose", "flour", "fish", "jam"],
               "clown": ["A clown stood on his head.", "Forty monkeys rode on forty pigs.",
                         "A wise man told the longest joke in the land.",
                         "Two bears danced in skirts."]},
        story="""
        - {opening}
        ~ {trait}
        - In that land there was {a ruler} who had not laughed for three years.
        / The {ruler} of that land never laughed, not even on birthdays.
        ~ "Whoever makes the {ruler} laugh will get a bag of silver," called the guards.
        / The guards promised a bag of silver for one laugh.

        - People came from everywhere. {clown}
        / Many had tried. {clown}
        ~ The {ruler} only sighed.
        / The {ruler} looked out of the window.
        - {hero} came with no tricks at all. {He} only brought {treats}.
        / {hero} came too, but {he} was so shy that {he} forgot {his} joke.

        - At the door {he} bowed, and {his} foot caught in the carpet.
        / {He} bowed so low that {he} fell over the carpet.
        - {He} fell into the cook, the cook fell into the guard, and the {fall} flew through the air.
        / {He} bumped a table, the table bumped a cook, and the {fall} landed on the general.
        ~ It was very quiet. "I am sorry," whispered {hero}. "Shall I do it again?"
        / Nobody dared to breathe. "That was not the joke," said {hero}.
        - Then came a strange little sound. The {ruler} was laughing!
        / Then the {ruler} made a sound like a rusty gate. It was a laugh!

        ~ "Everyone tries so hard," said the {ruler}. "You were just you."
        / "For three years nobody made a mistake in front of me," said the {ruler}.
        - {hero} sat down, and they ate {treats} together on the floor.
        / {hero} got a bag of silver, and the cook got a new hat.
        ~ Now {hero} comes each Friday, and the carpet is still crooked.
        / After that {hero} was asked to dinner, and the {fall} was kept far away.
        - A true laugh cannot be bought, but you can trip over it.
        / Even a fall can lift somebody up.
        / The general did not laugh, but his mouth moved a little.
        """,
    ),
    Plot(
        name="one colour of paint",
        titles=["{hero} and the {color} paint", "The {color} village",
                "{hero} paints everything {color}",
                "One pot of {color}", "The {color} door"],
        facts={"color like": [("blue", "the sky after rain"), ("yellow", "butter in the sun"),
                              ("red", "a ripe tomato"), ("green", "a happy frog"),
                              ("pink", "the inside of a shell"),
                              ("orange", "a basket of fruit")],
               "last": ["the mayor's gate", "the bank", "the judge's house",
                        "the old prison", "the tax office"]},
        story="""
        - {opening}
        ~ {trait}
        - The houses there were gray, and so were most of the people.
        / Everything there was gray, the walls, the doors and the soup.
        - One day a cart lost a barrel of {color} paint in front of {hero}'s door.
        / One day {hero} bought a barrel of {color} paint, because it was cheap.

        - {hero} painted {his} door, and it was {color} like {like}.
        / First {he} painted {his} own door. It was {color} like {like}.
        - "Shocking!" said {friend} from across the way.
        / "That is much too bright," said {friend}.
        - But the next day {friend} came with a chair. "Only a little," {friend_he} said.
        / But at night {friend} came with a bucket and whispered, "Is there any left?"
        - So {hero} painted a chair, a cart and three flower pots.
        / So {hero} painted two doors, five windows and, by mistake, a hen.
        ~ Then everyone wanted some.
        / Soon there was a line in front of the barrel.

        - "Who did this?" shouted the mayor, who wore gray to the tips of his shoes.
        / The mayor came running. "What is going on here?" he cried.
        - Just then the sun came out, and the whole street shone.
        / But a child took his hand and said, "Look, it is smiling."
        ~ The mayor looked up and down, and something in his face became soft.
        / The mayor opened his mouth to shout, and laughed instead.

        - With the last drop {hero} painted {last}.
        / There was just enough paint left for {last}, and {hero} painted it last of all.
        - Nobody is gray there now, except the donkey, who likes it.
        / Travellers come from far away to see it, and they go home in bright hats.
        / A little colour goes a long way.
        / One bright door can wake a whole street.
        """,
    ),
    Plot(
        name="the flying machine",
        titles=["{hero} wants to fly", "The {machine} of {hero}", "{hero} and the {machine}",
                "How the {machine} flew", "The tenth {machine}"],
        facts={"machine": ["kite boat", "paper bird", "flying chair", "great balloon",
                           "umbrella ship",
                           "wooden swan"],
               "fell": ["a pond full of ducks", "a heap of hay", "the laundry",
                        "a wedding cake",
                        "a field of cabbages", "the lap of the judge"],
               "missing": ["a longer tail", "lighter wood", "one more feather",
                           "a little hole in the middle",
                           "somebody to hold the rope"]},
        story="""
        - {opening}
        ~ {trait}
        - {He} looked up at the birds and thought, "Why not me?"
        / More than anything else, {he} wanted to fly.
        - So {he} built {a machine} from sticks, string and old sheets.
        / So {he} made {a machine} out of bed sheets, and {his} grandmother slept without.

        - The first time {he} fell into {fell}.
        / {He} jumped from the roof and landed in {fell}.
        ~ The second time {he} did not even leave the ground.
        / The second one blew away without {him}.
        ~ "People do not fly," said {friend}.
        / "You are not a bird," said {friend}. "Birds have smaller feet."
        ~ {hero} only rubbed {his} nose and took out {his} hammer.
        - After each fall {hero} wrote down one new thing that {he} had learned.
        / {hero} said, "Each fall tells me something," and wrote it on the wall.
        ~ After nine falls the wall was full.
        / Soon the list was as long as {his} arm.

        - "I see it now," {he} said. "It needs {missing}."
        / Then {friend} came by and said, "Perhaps it needs {missing}."
        - On a windy morning they carried the {machine} up the hill.
        / One bright morning half the neighbours climbed the hill to see the {machine}.
        - {hero} ran, and jumped, and did not come down!
        / There was a push, a creak and a shout. {hero} was in the air!
        ~ The houses grew as small as boxes, and the {water} shone like a spoon.
        / {He} flew over the {tree}, and a goose flew beside {him}, very surprised.

        - When {hero} came down, {he} could not speak, and that was new.
        / {hero} flew for as long as it takes to eat an apple. It was enough.
        ~ "Now me," said {friend}.
        / Then {friend} asked, very politely, for a turn.
        - Every fall is a step, if you write it down.
        / Those who fall nine times know nine things.
        / And the sheets went back on the bed, with wind still in them.
        """,
    ),
    Plot(
        name="the blanket cut in pieces",
        titles=["{hero} and the {color} {cloth}", "The {cloth} that grew smaller",
                "A piece for everyone",
                "{hero} cuts the {cloth}", "The {color} {cloth}"],
        facts={"cloth": ["blanket", "cloak", "coat", "carpet", "shawl"],
               "color": ["red", "blue", "green", "golden", "white"]},
        story="""
        - {opening}
        ~ {trait}
        - All summer {he} had worked on a warm {color} {cloth} for {himself}.
        / {He} owned one fine thing, a warm {color} {cloth}.
        - Then came the coldest night that anyone could remember.
        / That year the cold came early, and it bit like a dog.

        - On the road {hero} met a child who was shaking with cold.
        / {hero} was going home when {he} saw a child with blue hands.
        - {He} cut off a piece of the {cloth}. "Here is a scarf," {he} said.
        / Snip! {He} cut off a corner and wrapped the child in it.
        - Next {he} met {a helper}, whose ears were red. Snip! It made a good hat.
        / At the corner stood {a helper} with a thin coat. Snip! Now there was a patch for it.
        ~ Then there was a lamb, and then an old man, and then a dog with two pups.
        / Snip, snip! There were gloves for a beggar and socks for three small brothers.
        - At last {hero} had only a piece as big as a hand.
        / When {hero} came home, the {cloth} was no bigger than a leaf.

        ~ "Foolish me," {he} said, and shivered. "But they are warm."
        / {He} put it over {his} nose and tried to sleep.
        - At midnight somebody knocked. There stood the {helper}, and the child, and all the others.
        / Then the door opened, and in they came, the child, the {helper} and all the rest.
        ~ "You cannot be warm with that," said the {helper}. "So we will sit close."
        / "We have brought it back," said the {helper}, "with ourselves inside it."

        - They sat around {hero}, all in {color}, like one big {cloth}.
        / The lamp was lit, and {hero} sat in the middle, as warm as toast.
        - What you give away keeps you warm the longest.
        / The warmest cloth is made of friends.
        / {hero}'s cat lay on everybody's feet.
        / In spring {he} began a new one, and this time many hands helped.
        """,
    ),
    Plot(
        name="the moon in the bucket",
        titles=["{hero} and the moon", "The moon in the {pot}", "{hero} catches the moon",
                "A moon for little {sister}", "How {hero} brought the moon home"],
        facts={"sister": ["Polly", "Betty", "Sally", "Penny", "Daisy"],
               "pot": ["bucket", "bath", "blue bowl", "cooking pot", "milk jug"],
               "tool": ["a net", "a spoon", "a basket", "a long rope", "a hat"]},
        story="""
        - {opening}
        ~ {trait}
        - {His} little sister {sister} was ill and could not go outside.
        / {His} little sister {sister} had a fever and lay in bed all day.
        - "I miss the moon," said {sister}. "From my bed I cannot see it."
        / "Bring me the moon," said {sister}, "and I will be well."

        - That night {hero} went out with {tool}.
        / So {hero} took {tool} and walked out into the night.
        ~ {He} climbed a hill, but the moon climbed too.
        / {He} climbed the {tree}, but the moon was always one branch higher.
        - Then {he} saw it in the {water}, round and white. Splash!
        / Then {he} saw it lying in the {water}. {He} jumped. Splash!
        ~ The moon broke into a hundred pieces and laughed at {him}.
        / The moon went to pieces, and {hero} came up with a fish in {his} shirt.
        - "What are you doing?" asked {a helper} from the path.
        / On the bank stood {a helper}. "Are you washing your clothes?" asked the {helper}.
        ~ {hero} told everything, with water in {his} shoes.
        / "I am catching the moon for {sister}," said {hero}, and sneezed.

        - "You cannot catch the moon," said the {helper}, "but you can invite it."
        / "The moon comes to anyone who holds still," said the {helper}.
        - At home {hero} filled a {pot} with water and set it by the bed, under the window.
        / {hero} carried a {pot} of water home and put it down beside the bed.
        - They waited until it was quite still. And there was the moon!
        / The water trembled, and then it was smooth. The moon was in the room!

        - {sister} touched it with one finger and slept until morning. {hero} slept too, in wet socks.
        / "It is cold," whispered {sister}, and smiled. {hero} sat beside her until the moon had gone.
        - Do not chase what is bright. Hold still for it.
        / Some gifts cannot be held, but they can be shared.
        / In the morning the {pot} was only water, but nobody poured it out.
        / In the morning the fever was gone, and {hero} had a cold.
        """,
    ),
    Plot(
        name="the honest finder",
        titles=["{hero} and the purse", "The {color} purse", "{hero} finds a purse",
                "Three coins for {hero}",
                "The purse on the {where}"],
        facts={"color": ["red", "black", "green", "brown", "yellow"],
               "where": ["bridge", "road", "market steps", "river bank", "old bench"],
               "need": ["new shoes, because {his} own had more holes than shoe",
                        "a new roof, because the old one let in the stars",
                        "a new cart, because the old one had three wheels",
                        "a warm coat, because the wind knew all the holes in {his} old one"],
               "for_what": ["to buy a cow for my five children", "to pay for my son's school",
                            "to bring my sister home from far away",
                            "to buy medicine for my mother"]},
        story="""
        - {opening}
        ~ {trait}
        - {He} was poor, and {he} needed {need}.
        / That year {he} needed {need}.
        - One morning {he} found a {color} purse on the {where}.
        / On the {where} {he} found a {color} purse, fat and heavy.
        ~ Inside were twenty gold coins.
        / {He} looked inside and saw gold, a great deal of gold.

        - "Nobody saw you," said {his} left ear. "Somebody saw you," said {his} right ear. "You did."
        / "Keep it," said {his} left ear. "Give it back," said {his} right ear.
        ~ {hero} thought of {his} wish, and {he} thought for a long time.
        / {hero} sat down, because such a purse is heavy in more than one way.
        - "It is not mine," {he} said at last.
        / "Somebody is crying for this," {he} said.

        - {He} walked from door to door and asked who had lost a purse.
        / All day {he} stood on the {where} and asked everyone who passed.
        ~ "I did!" said a rich man. "What colour was it?" asked {hero}. The rich man went away.
        / A man in silk said that it was his, but he did not know the colour.
        - In the evening an old woman came, looking at the ground.
        / At sunset an old woman came by with red eyes.
        - "It was {color}," she said. "I saved for ten years, {for_what}."
        / "My {color} purse is gone," she said. "I needed the gold {for_what}."
        - {hero} put it in her hands, and not one coin was missing.
        / "Here it is," said {hero}. "All of it."

        - The old woman told everyone, and soon the neighbours came to help {hero}.
        / The next morning there was a knock. The neighbours had heard, and they came to help {hero}.
        ~ Some brought tools, some brought time, and one brought {treats}.
        / Before the week was over, {he} had what {he} needed.
        - An honest hand is never empty for long.
        / Gold is heavy, but a clear heart is light.
        / {His} right ear was very proud.
        / That night {hero} slept better than ever before.
        """,
    ),
    Plot(
        name="the sleepy story",
        titles=["{hero} and the robbers", "The story that was too long", "{hero} tells a story",
                "The {count} robbers", "The robbers and the {about}"],
        facts={"count": ["three", "five", "seven", "nine"],
               "about detail": [
                   ("snail", "how the snail packed its bag, sock by sock"),
                   ("grain of rice", "of all the brothers of the grain, one by one"),
                   ("sheep", "how a thousand sheep jumped over a gate"),
                   ("old shoe", "of each road that the shoe had walked"),
                   ("turtle", "what the turtle had for breakfast for a hundred years"),
                   ("drop of water", "of each leaf that the drop had touched")]},
        story="""
        - {opening}
        ~ {trait}
        - One of {his} stories was so slow that it made everyone sleep.
        / {He} had one story that nobody had ever heard to the end, because they fell asleep.
        ~ Mothers loved it, and so did tired babies.

        - One night {count} robbers broke into the house where {he} was staying.
        / One night, on a lonely road, {hero} was caught by {count} robbers.
        - "Give us your gold!" they shouted.
        / "Your money!" said the biggest one, who had a knife and a cold.
        - "I have no gold," said {hero}, "but I have a story about {a about}."
        / "All my riches are in my head," said {hero}. "Shall I tell you about the {about}?"
        ~ "Is there a fight in it?" asked the biggest robber. "In the end," said {hero}.
        / The robbers had not heard a story since they were small. They sat down.

        - {hero} began softly, and told {detail}.
        / In a low voice {he} told them {detail}.
        ~ One robber yawned. Then the next one yawned.
        / The smallest robber put his head on the shoulder of the biggest.
        ~ "And then?" asked the biggest robber. "And then," said {hero}, "it went on."
        / "Will it be exciting soon?" whispered the biggest. "Very soon," said {hero}.
        - At last all {count} were snoring.
        / Before the lamp was low, there was snoring from {count} noses.

        ~ {hero} tied their boots together and covered them with a blanket.
        / {hero} took away the knives and put apples in their hands.
        ~ They woke up like new men, for they had not slept so well in years.
        / They were not even angry when they woke. They felt too well.
        - When the sun rose, they asked, "How does it end?" "Find honest work," said {hero}, "and I will tell you."
        / After that night they gave up robbing, and each week they came to {hero} to hear how it ended.
        - A soft word can do what a sword cannot.
        / They have never heard the end. They always fall asleep.
        / A good story opens the fist.
        """,
        trades=("storyteller",),
    ),
    Plot(
        name="a chain of swaps",
        titles=["{hero} and the {first}", "{hero} goes to market", "From {first} to {last}",
                "The swaps of {hero}", "How {hero} got a {last}"],
        facts={"first": ["button", "blue feather", "wooden spoon", "red apple", "bell"],
               "second": ["rope", "jug of milk", "pair of gloves", "round cheese"],
               "third": ["hen", "lamp", "barrel", "drum"],
               "last why": [("kitten", "{He} had wanted a friend all along."),
                            ("fiddle", "{He} had always wanted to make music."),
                            ("puppy", "{He} had dreamed of a dog since {he} was small."),
                            ("rose bush", "{His} grandmother had wished for roses for years."),
                            ("book", "{He} had never owned a book before.")]},
        story="""
        - {opening}
        ~ {trait}
        - All {he} had to sell was {a first}, but {he} went to market with a light heart.
        / One market day {he} had no money, only {a first} in {his} pocket.

        - On the way {he} met {a helper}, who needed just such a thing.
        / First {he} met {a helper}. "Oh, {a first}! That is what I need," said the {helper}.
        - {hero} gave the {first} away and got {a second} for it.
        / So the {helper} took the {first} and gave {him} {a second}.
        - Next {he} met {friend}, who was in trouble without {a second}.
        / Then {friend} came by and sighed, "If only I had {a second}!"
        - "Take mine," said {hero}, and {friend} gave {him} {a third}.
        / {hero} could not look at a sad face, so {he} swapped it for {a third}.

        - At the market gate sat a small girl who cried, "I have lost my {third}!"
        / By the well sat a small girl. "Mother wanted {a third}," she cried, "and I have no money."
        - {hero} gave her the {third} and asked for nothing.
        / {hero} put the {third} into her arms at once.
        - The girl laughed and pushed {a last} into {his} hands. "Then this is yours!"
        / "Thank you!" cried the girl. "Please take this {last}."

        - {hero} looked at the {last}, and {his} eyes shone. {why}
        / {hero} carried the {last} home like a crown. {why}
        - A good swap makes two people glad.
        / Count the smiles, and you will see who is rich.
        / {He} never learned to ask for gold, and {he} never missed it.
        """,
    ),
    Plot(
        name="the haunted house",
        titles=["{hero} and the haunted house", "The ghost of the {room}",
                "{hero} visits a ghost",
                "The ghost that went {sound}", "What went {sound} in the night?"],
        facts={"room": ["empty mill", "old school", "house on the hill", "broken tower",
                        "last house"],
               "sound truth": [
                   ("Woo", "an owl with a sore throat"),
                   ("Tap tap", "a loose shutter and the wind"),
                   ("Clank", "a goat with a bucket on its horns"),
                   ("Boom", "a cat asleep on a drum"),
                   ("Scratch", "a hedgehog in a box of paper"),
                   ("Ooh", "the wind blowing in a bottle"),
                   ("Plop", "a frog who lived in the bath")]},
        story="""
        - {opening}
        ~ {trait}
        - Nobody went near the {room}, because there was a ghost in it.
        / Everyone was afraid of the {room}. "A ghost lives there," they said.
        - At night it went "{sound}," and then it went "{sound}" again.
        / When the moon was up, you could hear it. "{sound}," it went. "{sound}!"

        ~ "It has no head," said {friend}.
        / "It eats boots," said {friend}, who had never seen it.
        - "It must be hungry," said {hero}.
        / "Poor ghost," said {hero}. "Nobody ever visits it."
        - So one night {hero} took a lamp and {treats} and went to the door.
        / So {he} put {treats} in a basket, lit a lamp and went.
        - {friend} came too, but only as far as the gate.
        / {friend} held the gate open, in case they had to run.

        ~ Inside, the floor creaked, and the shadows leaned over to look.
        / The door opened by itself, and a cold wind touched {his} neck.
        - "{sound}!" said something in the dark.
        / Then it came, very near. "{sound}!"
        - {hero}'s hair stood up. "G-good evening," {he} said.
        / {hero} almost dropped the lamp, but {he} said politely, "Good evening."
        - {He} lifted the lamp and saw {truth}.
        / Slowly {he} came around the corner. It was {truth}!

        - {hero} laughed until the dust came down.
        / "{friend}!" called {hero}. "Come and meet the ghost!"
        - Now it is the place where children tell stories, and {hero} brings {treats}.
        / After that {hero} and {friend} played there every day.
        - A fear grows small when you bring a lamp.
        / Most ghosts only want a visitor.
        / {friend} still says that {friend_he} knew it all the time.
        / But who had opened the door? Nobody ever found out.
        """,
    ),
]


def main():
    """Read the options, tell the stories, check them and write the file."""
    parser = argparse.ArgumentParser(description="Make the story corpus.")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same stories")
    parser.add_argument("--stories", type=int, default=1800, help="how many stories")
    parser.add_argument("--output", type=Path, help="where to write them",
                        default=Path(__file__).resolve().parent / "training_data.txt")
    options = parser.parse_args()

    stories = tell_all(options.stories, options.seed)
    check(stories)
    corpus = as_file(stories).encode("utf-8")
    options.output.write_bytes(corpus)  # bytes, so that Windows keeps the "\n"

    print(f"{len(stories)} stories, {len(corpus)} bytes, in {options.output}")
    print(f"{len({title for _, title, _, _ in stories})} different titles")
    for plot, count in sorted(Counter(plot for plot, _, _, _ in stories).items()):
        print(f"{count:5} {plot}")


if __name__ == "__main__":
    main()
