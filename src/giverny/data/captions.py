"""Words for classes: templates, articles and synonyms turn a label into captions.

A set that has only labels ("7") still teaches a text-to-picture model, if every label is given the ways in which people
name it ("a sneaker", "a photo of a trainer"). The first template with the first synonym is a class's canonical caption.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from ..base.contracts import Frozen
from .chance import hashed

# Written with a vowel but spoken with a consonant ("a uniform", "a one-piece"), and the other way round ("an hour").
_SPOKEN_CONSONANT = re.compile(r"(uni(?![mn])|us[aeiu]|ut[eio]|eu|ewe|one\b|once\b)", re.IGNORECASE)
_SPOKEN_VOWEL = re.compile(r"([aeiou]|hour|honest|honou?r|heir)", re.IGNORECASE)


def article(noun: str) -> str:
    """'a' or 'an', as the noun is spoken."""
    return "an" if _SPOKEN_VOWEL.match(noun) and not _SPOKEN_CONSONANT.match(noun) else "a"


class Noun(Frozen):
    """A way to name a thing. A bare string stands for a countable noun without a plural."""

    name: str = Field(min_length=1, description="as it stands after its article, such as 'ankle boot'")
    article: str | None = Field(None, description="None: by its sound; '': takes none, as 'trousers'")
    plural: str = Field("", description="such as 'ankle boots'; '': templates that need it pass this noun over")

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def put_into(self, template: str) -> str:
        """The caption, or '' where the template wants a plural that is not given."""
        if "{names}" in template and not self.plural:
            return ""
        a = article(self.name) if self.article is None else self.article
        return " ".join(template.format(a=a, name=self.name, names=self.plural).split())


class Captions(Frozen):
    """How the classes of a set are put into words.

    Templates may hold {a} (article), {name} and {names} (plural). No noun may name two classes: a caption that fits
    both would teach neither.
    """

    classes: tuple[str, ...] = Field(description="the set's own class names, by label")
    nouns: tuple[tuple[Noun, ...], ...] = Field(description="synonyms of each class, the commonest first")
    templates: tuple[str, ...] = Field(("{a} {name}",), min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Captions:
        if len(self.nouns) != len(self.classes) or not all(self.nouns):
            raise ValueError(f"{len(self.classes)} classes want as many non-empty lists of nouns, not {len(self.nouns)}")
        owner: dict[str, str] = {}
        for name, nouns in zip(self.classes, self.nouns, strict=True):
            for word in {form.lower() for noun in nouns for form in (noun.name, noun.plural) if form}:
                if owner.setdefault(word, name) != name:
                    raise ValueError(f"{word!r} names both {owner[word]!r} and {name!r}")
        for template in self.templates:
            fields = set(re.findall(r"{(.*?)}", template))
            if not fields & {"name", "names"} or fields - {"a", "name", "names"}:
                raise ValueError(f"a template holds {{name}} or {{names}}, perhaps {{a}}, nothing else: {template!r}")
        return self

    def of(self, label: int) -> tuple[str, ...]:
        """All captions of a class, the canonical one first, none twice."""
        made = (noun.put_into(template) for template in self.templates for noun in self.nouns[label])
        return tuple(dict.fromkeys(caption for caption in made if caption))

    def all(self) -> tuple[tuple[str, ...], ...]:
        """`of` for every label, in order."""
        return tuple(self.of(label) for label in range(len(self.classes)))


def pick(captions: Sequence[str], seed: int, epoch: int, index: int) -> str:
    """One of an example's captions, decided by (seed, epoch, index) alone; '' where there are none."""
    return captions[int(hashed("caption", seed, epoch, index)[0]) % len(captions)] if captions else ""


def countable(*pairs: str) -> tuple[Noun, ...]:
    """Nouns from 'singular/plural' pairs; '/plural' alone is a noun without singular and article, as 'trousers'."""
    split = (pair.partition("/") for pair in pairs)
    return tuple(Noun(name=one or many, plural=many, article=None if one else "") for one, _, many in split)


_TEMPLATES = ("{a} {name}", "a photo of {a} {name}", "a picture of {a} {name}", "{name}", "{names}")

FASHION_MNIST = Captions(
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    nouns=(
        countable("t-shirt/t-shirts", "tee/tees"),
        countable("/trousers", "/pants", "pair of trousers/pairs of trousers"),
        countable("pullover/pullovers", "sweater/sweaters", "jumper/jumpers"),
        countable("dress/dresses", "gown/gowns"),
        countable("coat/coats", "jacket/jackets", "overcoat/overcoats"),
        countable("sandal/sandals", "open sandal/open sandals"),
        countable("shirt/shirts", "blouse/blouses", "collared shirt/collared shirts"),
        countable("sneaker/sneakers", "trainer/trainers", "running shoe/running shoes"),
        countable("bag/bags", "handbag/handbags", "purse/purses"),
        countable("ankle boot/ankle boots", "boot/boots", "bootie/booties"),
    ),
    templates=_TEMPLATES,
)

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

MNIST = Captions(
    classes=tuple("0123456789"),
    nouns=tuple((*countable(f"{name}/"), Noun(name=str(digit))) for digit, name in enumerate(_DIGITS)),
    templates=("a handwritten {name}", "the digit {name}", "{name}"),
)

CIFAR10 = Captions(
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    nouns=(
        countable("airplane/airplanes", "plane/planes"),
        countable("car/cars", "automobile/automobiles"),
        countable("bird/birds"),
        countable("cat/cats"),
        countable("deer/"),
        countable("dog/dogs"),
        countable("frog/frogs"),
        countable("horse/horses"),
        countable("ship/ships", "boat/boats"),
        countable("truck/trucks", "lorry/lorries"),
    ),
    templates=_TEMPLATES,
)
