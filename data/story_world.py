"""The world of the bundled stories: who lives where, and what they do all day."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """Somebody with a pronoun: a hero, a friend or a helper met on the way."""

    name: str
    he: str  # "he" or "she"


def people(she: str, he: str) -> list[Person]:
    """Two lists of names become one list of persons."""
    return [Person(n, "she") for n in she.split()] + [Person(n, "he") for n in he.split()]


# The names are common ones which GPT-2 keeps whole, as one token each. It makes the hero easy to
# remember for a very small model.
HEROES = people(
    "Maya Tara Hanna Natasha Fiona Elena Sara Isabel Grace Zoe Emma Lina",
    "Raj Ivan Owen Dylan Leo Marco Ali Ahmed Ken Pablo Noah Ben",
)
# A hero's home and friend are the same in all stories, as in a series (home_of and friend_of): a
# very small model remembers them then.
FRIENDS = people(
    "Vera Kate Stella Ruth Kim Eva Hope Jane", "Kumar Igor Sean Simon Adam Jin Juan Abel"
)


@dataclass(frozen=True)
class Place:
    """Where a hero lives, and what there is. A plot may use any of it."""

    where: str
    water: str
    tree: str
    dish: str
    treats: str


PLACES = [
    Place("in a village by the river", "river", "apple tree", "bean soup", "honey cakes"),
    Place("in a village under a blue mountain", "lake", "plum tree", "potato soup", "apple pies"),
    Place("in a village of ponds", "pond", "pear tree", "noodle soup", "rice cakes"),
    Place("in a white village on a hill", "river", "cherry tree", "bean soup", "butter buns"),
    Place("in a harbour town with white boats", "river", "old oak", "fish soup", "lemon pies"),
    Place("in a small town by the sea", "river", "pear tree", "fish soup", "honey cakes"),
    Place("in a market town", "pond", "plum tree", "noodle soup", "butter buns"),
    Place("in a narrow lane of an old city", "river", "cherry tree", "rice and fish", "rice cakes"),
    Place("in a green valley", "lake", "apple tree", "potato soup", "honey cakes"),
    Place("at the edge of a forest", "pond", "old oak", "bean soup", "apple pies"),
    Place("on a windy island", "lake", "pear tree", "rice and fish", "lemon pies"),
    Place("on a crooked street", "pond", "cherry tree", "noodle soup", "lemon pies"),
]

# The names of a place's things, as plots write them.
THINGS = ("water", "tree", "dish", "treats")


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
    "potter": [
        "{His} pots were round, and {his} jokes were rounder.",
        "{He} made cups and bowls that never leaked, or almost never.",
    ],
    "baker": [
        "{He} baked bread every day before the birds woke up.",
        "People said that {his} bread could make a stone smile.",
    ],
    "weaver": [
        "{He} wove cloth in all the colours of the morning.",
        "{His} blankets were so soft that the cats stole them.",
    ],
    "carpenter": [
        "{He} could build anything, but {his} own chair had three legs.",
        "{He} had sawdust in {his} hair and a pencil behind {his} ear.",
    ],
    "fisher": [
        "{He} caught small fish and told stories of big ones.",
        "{His} little boat was old, but it knew the way home.",
    ],
    "tailor": [
        "{His} coats had many pockets, and in every pocket was a surprise.",
        "{He} could sew a button on anything, even on a hat.",
    ],
    "gardener": [
        "{He} talked to {his} beans, and the beans grew taller to listen.",
        "{His} garden was small, but every bee knew the way to it.",
    ],
    "drummer": [
        "{He} drummed on pots, on doors and on {his} own knees.",
        "When {he} played, even the old chairs wanted to dance.",
    ],
    "painter": [
        "{He} always had a spot of blue paint on {his} nose.",
        "{He} painted doors, boats and sometimes, by mistake, the cat.",
    ],
    "shoemaker": [
        "{He} made shoes for everyone and walked about with bare feet.",
        "{His} shoes were so light that old men ran in them.",
    ],
    "letter carrier": [
        "{He} carried good news quickly and bad news gently.",
        "{He} knew every door and every dog in the place.",
    ],
    "storyteller": [
        "{He} had a story for every day and two for a rainy one.",
        "{His} stories were long, but nobody ever went home early.",
    ],
}

HELPERS = [
    Person("old sailor", "he"),
    Person("tall shepherd", "he"),
    Person("sleepy miller", "he"),
    Person("old soldier", "he"),
    Person("rope maker", "he"),
    Person("barber", "he"),
    Person("flower seller", "she"),
    Person("honey seller", "she"),
    Person("basket maker", "she"),
    Person("goose girl", "she"),
    Person("egg seller", "she"),
    Person("washerwoman", "she"),
]


def home_of(hero: Person) -> Place:
    """Where a hero lives. Two heroes live in each place."""
    return PLACES[HEROES.index(hero) % len(PLACES)]


def friend_of(hero: Person) -> Person:
    """A hero's friend, who is of the other sex, so that a pronoun can mean one person only."""
    others = [person for person in FRIENDS if person.he != hero.he]
    return others[HEROES.index(hero) % len(others)]
