"""The words of the synthetic world: name pools, and how each relation is written, asked and nested."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

PERSON, CITY, COMPANY, COUNTRY = "person", "city", "company", "country"

WOMEN = (
    "Ada Anna Bella Clara Dora Edith Elena Emma Freya Greta Hanna Helen Ida Irene Iris Ivy Jane Joan Julia Karen Lara "
    "Laura Leila Lena Lily Lucy Mabel Maria Martha Mina Nadia Nina Nora Olga Paula Rita Rosa Ruth Sara Sonia Stella "
    "Tina Vera Wanda Yara Zoe"
).split()
MEN = (
    "Adam Alan Boris Bruno Carl Cedric Daniel David Dennis Edgar Erik Felix Frank Fred Gavin George Gustav Harold "
    "Henry Hugo Ivan Jack James Jonas Karl Kevin Leo Lewis Louis Marcus Martin Max Milo Nils Oliver Oscar Otto Paul "
    "Peter Ralph Simon Stefan Thomas Victor Walter"
).split()
LAST = (
    "Abbott Adler Archer Barlow Becker Bishop Blake Brandt Brook Burton Carver Chase Conrad Cooper Cross Dalton Decker "
    "Dixon Doyle Drake Dunn Ellis Farmer Fischer Flynn Foster Fuller Gibson Grant Graves Hagen Hale Harper Hayes "
    "Holmes Horn Hudson Hunt Jansen Jensen Keller Kent Klein Knight Kramer Lambert Lang Larsen Lawson Lind Lowe Lund "
    "Marsh Mason Meyer Miller Moore Morgan Moss Nash Newman Nolan Norris Novak Olsen Owens Palmer Parker Pearce Porter "
    "Quinn Reed Ricci Roth Rowe Russo Sanders Schmidt Sharp Shaw Silva Sloan Stone Strand Sutton Tate Taylor Thorne "
    "Turner Vance Vogel Wagner Wallace Walsh Weaver Weber West Winter Wolfe Yates Young Zimmer"
).split()
CITY_FIRST = (
    "Alder Apple Ash Badger Beaver Birch Bluebell Bramble Brass Briar Buck Candle Cherry Clay Clover Cotton Crane Crow "
    "Daisy Deer Dove Elk Elm Fern Flint Garden Ginger Goose Hazel Heather Holly Honey Iron Juniper King Lilac Linden "
    "Maiden Marble Mill Mint Moon Mulberry Oak Olive Peach Pepper Pigeon Pine Plum Poplar Queen Raven Reindeer Rose "
    "Sage Salt Shepherd Silver Sparrow Star Swan Thistle Thunder Timber Turtle Walnut Wheat Wren"
).split()
CITY_LAST = "Bay Beach Bluff Corner Cove Creek Crossing Falls Grove Heights Hill Lake Park Point Ridge Valley".split()
COMPANY_FIRST = (
    "Acorn Alpine Anchor Apex Arrow Atlas Aurora Beacon Bison Bolt Cedar Cobalt Comet Copper Coral Crest Crown Crystal "
    "Delta Desert Diamond Eagle Echo Ember Falcon Forest Fox Galaxy Garnet Granite Harbor Heron Horizon Island Ivory "
    "Jade Jaguar Jupiter Keystone Lantern Laurel Lion Lotus Lunar Magnet Maple Mercury Meteor Nova Ocean Onyx Opal "
    "Orbit Orchid Otter Panda Pearl Phoenix Pilot Pioneer Planet Polar Prairie Prism Quartz Rapid River Robin Rocket "
    "Ruby Saturn Scarlet Shadow Solar Spark Summit Sunrise Tiger Titan Tundra Velvet Violet Willow Zebra Zenith"
).split()
COMPANY_LAST = "Airlines Bank Books Foods Games Group Labs Motors Paper Records Steel Studios Systems Tools".split()
COUNTRY_FIRST = "Central East Great Inner Lower New North Old Outer South Upper West".split()
COUNTRY_LAST = (
    "Bellavia Cardania Delmaria Elvania Fenland Galdovia Helvoria Istania Jorland Kalmaria Lorenia Marovia Norvania "
    "Ostland Pelloria Quarania Ravonia Selmaria Tarvania Ulmaria Valdoria Vestland Wendoria Xandria Yarland Zelmaria"
).split()
NAMES = {
    PERSON: (sorted(WOMEN + MEN), LAST),
    CITY: (CITY_FIRST, CITY_LAST),
    COMPANY: (COMPANY_FIRST, COMPANY_LAST),
    COUNTRY: (COUNTRY_FIRST, COUNTRY_LAST),
}


def all_names(kind: str) -> list[str]:
    """Returns every full name of a kind, first word and last word in all combinations, in a fixed order."""
    return [f"{first} {last}" for first, last in product(*NAMES[kind])]


@dataclass(frozen=True)
class Relation:
    """How one relation is told. `{s}` is the subject, `{o}` the object.

    Attributes:
        noun: as in an infobox and in a search query.
        forms: sentences that name the subject; the first is the canonical one.
        pronoun_forms: sentences whose subject is a pronoun, filled in for `{s}`.
        questions: ask for the object.
        phrases: noun phrases for the object, nested into multi-hop questions.
    """

    subject_kind: str
    object_kind: str
    noun: str
    forms: tuple[str, ...]
    pronoun_forms: tuple[str, ...]
    questions: tuple[str, ...]
    phrases: tuple[str, ...]

    def sentence(self, subject: str, object_: str) -> str:
        """Writes the canonical sentence of a fact."""
        return self.forms[0].format(s=subject, o=object_)

    def pronoun(self, subject: str) -> str:
        """Returns He or She for a person, It otherwise."""
        if self.subject_kind != PERSON:
            return "It"
        return "She" if subject.split()[0] in WOMEN else "He"


RELATIONS: dict[str, Relation] = {
    "birthplace": Relation(
        PERSON, CITY, "birthplace",
        ("{s} was born in {o}.", "{s} is a native of {o}.", "{s} comes from {o}.", "The birthplace of {s} is {o}."),
        ("{s} was born in {o}.", "{s} is a native of {o}.", "{s} comes from {o}."),
        ("Where was {s} born?", "In which city was {s} born?", "What is the birthplace of {s}?"),
        ("the city where {s} was born", "the birthplace of {s}"),
    ),
    "employer": Relation(
        PERSON, COMPANY, "employer",
        ("{s} works for {o}.", "{s} is employed by {o}.", "{s} has a job at {o}.", "{o} employs {s}."),
        ("{s} works for {o}.", "{s} is employed by {o}.", "{s} has a job at {o}."),
        ("Which company does {s} work for?", "Which company employs {s}?", "Who is the employer of {s}?"),
        ("the company that employs {s}", "the employer of {s}"),
    ),
    "teacher": Relation(
        PERSON, PERSON, "teacher",
        ("The teacher of {s} was {o}.", "{s} studied under {o}.", "{o} was the teacher of {s}.", "{o} taught {s}."),
        ("{s} studied under {o}.", "{s} was taught by {o}.", "{s} was a pupil of {o}."),
        ("Who was the teacher of {s}?", "Who taught {s}?", "Under whom did {s} study?"),
        ("the teacher of {s}", "the person who taught {s}"),
    ),
    "mayor": Relation(
        CITY, PERSON, "mayor",
        ("The mayor of {s} is {o}.", "{o} is the mayor of {s}.", "{s} elected {o} as mayor."),
        ("{s} elected {o} as mayor.", "{s} has a mayor named {o}.", "{s} is governed by mayor {o}."),
        ("Who is the mayor of {s}?", "Who governs {s} as mayor?"),
        ("the mayor of {s}", "the person who is mayor of {s}"),
    ),
    "country": Relation(
        CITY, COUNTRY, "country",
        ("{s} is in {o}.", "{s} is a city in {o}.", "{s} is a port in {o}.", "{s} lies in the north of {o}."),
        ("{s} is a city in {o}.", "{s} is a port in {o}.", "{s} lies in the south of {o}."),
        ("In which country is {s}?", "Which country is {s} in?"),
        ("the country of {s}", "the country that contains {s}"),
    ),
    "headquarters": Relation(
        COMPANY, CITY, "headquarters",
        ("{s} is based in {o}.", "{s} has its headquarters in {o}.", "The headquarters of {s} are in {o}."),
        ("{s} is based in {o}.", "{s} has its headquarters in {o}.", "{s} has its main office in {o}."),
        ("Where is {s} based?", "In which city does {s} have its headquarters?"),
        ("the city where {s} is based", "the headquarters city of {s}"),
    ),
    "founder": Relation(
        COMPANY, PERSON, "founder",
        ("{s} was founded by {o}.", "{o} founded {s}.", "The founder of {s} is {o}."),
        ("{s} was founded by {o}.", "{s} was started by {o}.", "{s} has {o} as its founder."),
        ("Who founded {s}?", "Who is the founder of {s}?"),
        ("the founder of {s}", "the person who founded {s}"),
    ),
    "capital": Relation(
        COUNTRY, CITY, "capital",
        ("The capital of {s} is {o}.", "{s} has {o} as its capital.", "{o} is the capital of {s}."),
        ("{s} has {o} as its capital.", "{s} chose {o} as its capital."),
        ("What is the capital of {s}?", "Which city is the capital of {s}?"),
        ("the capital of {s}", "the capital city of {s}"),
    ),
    "president": Relation(
        COUNTRY, PERSON, "president",
        ("The president of {s} is {o}.", "{o} is the president of {s}.", "{s} elected {o} as president."),
        ("{s} elected {o} as president.", "{s} has a president named {o}.", "{s} is led by president {o}."),
        ("Who is the president of {s}?", "Who leads {s} as president?"),
        ("the president of {s}", "the person who is president of {s}"),
    ),
}  # fmt: skip

FILLERS: dict[str, tuple[str, ...]] = {
    PERSON: ("The family keeps bees.", "Old friends tell of a sharp wit.", "Chess is a lifelong hobby."),
    CITY: ("The old market is well known.", "Winters there are long and cold.", "A river runs through the centre."),
    COMPANY: ("Sales rose last year.", "The logo is blue and white.", "Hundreds of people work there."),
    COUNTRY: ("The coast is rocky.", "Most people live in the valleys.", "Wool is the main export."),
}


@dataclass(frozen=True)
class Distractor:
    """A page that shares words with questions about an entity and answers none of them.

    Attributes:
        share: share of the entities of that kind that have one.
        topics: what the page is about, appended to the entity's name to make its title.
        forms: its sentence; `{t}` is the title, `{s}` the entity, `{o}` a person.
    """

    share: float
    topics: tuple[str, ...]
    forms: tuple[str, ...]

    def write(self, name: str, person: str, rng: random.Random) -> tuple[str, str]:
        """Writes (title, text) of one such page."""
        title = f"{name} {rng.choice(self.topics)}"
        return title, rng.choice(self.forms).format(t=title, s=name, o=person)


DISTRACTORS: dict[str, Distractor] = {
    PERSON: Distractor(0.1, ("Prize", "Archive"), ("The {t} was won by {o}.", "The {t} is a collection kept by {o}.")),
    CITY: Distractor(
        0.3, ("Museum", "Station", "Tower"), ("The {t} was designed by {o}.", "{o} opened the {t} to visitors.")
    ),
    COMPANY: Distractor(0.3, ("Museum", "Tower"), ("The {t} was designed by {o}.", "{o} manages the {t}.")),
    COUNTRY: Distractor(0.5, ("Cup", "Museum"), ("The {t} was won by {o}.", "{o} opened the {t} to visitors.")),
}
