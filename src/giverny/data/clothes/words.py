"""Clothes in words: which garments and colours there are, what people call them, and how a caption is put together.

Two sets of photographs name their goods differently; here both come to one list. A caption is composed anew for every
picture and epoch: synonyms change, attributes are left out now and then, so that "a dress", "a red dress" and "red dress
for women" are all understood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ...base.contracts import Frozen
from ..captions import Noun, article, countable


class Garment(Frozen):
    """A kind of thing to wear. shop: article types of the shop photographs; home: labels of the photographs at home."""

    name: str
    nouns: tuple[Noun, ...]  # the commonest first
    shop: tuple[str, ...] = ()
    home: tuple[str, ...] = ()


def _garment(name: str, *pairs: str, shop: Sequence[str] = (), home: Sequence[str] = ()) -> Garment:
    return Garment(name=name, nouns=countable(*pairs), shop=tuple(shop), home=tuple(home))


GARMENTS: Mapping[str, Garment] = MappingProxyType(
    {
        g.name: g
        for g in (
            _garment("t-shirt", "t-shirt/t-shirts", "tshirt/tshirts", "tee/tees", shop=["Tshirts"], home=["T-Shirt"]),
            _garment("polo shirt", "polo shirt/polo shirts", "polo/polos", home=["Polo"]),
            _garment("shirt", "shirt/shirts", "button-up shirt/button-up shirts", shop=["Shirts"], home=["Shirt"]),
            _garment("blouse", "blouse/blouses", home=["Blouse"]),
            _garment("top", "top/tops", shop=["Tops", "Tunics"], home=["Top"]),
            _garment("long-sleeved top", "long-sleeved top/long-sleeved tops", "longsleeve/longsleeves", home=["Longsleeve"]),
            _garment("undershirt", "undershirt/undershirts", "tank top/tank tops", home=["Undershirt"]),
            _garment("bodysuit", "bodysuit/bodysuits", home=["Body"]),
            _garment("sweater", "sweater/sweaters", "pullover/pullovers", "jumper/jumpers", shop=["Sweaters"]),
            _garment("sweatshirt", "sweatshirt/sweatshirts", shop=["Sweatshirts"]),
            _garment("hoodie", "hoodie/hoodies", home=["Hoodie"]),
            _garment("jacket", "jacket/jackets", "coat/coats", shop=["Jackets"], home=["Outwear"]),
            _garment("blazer", "blazer/blazers", "suit jacket/suit jackets", home=["Blazer"]),
            _garment("kurta", "kurta/kurtas", shop=["Kurtas", "Kurtis"]),
            _garment("dress", "dress/dresses", "gown/gowns", shop=["Dresses"], home=["Dress"]),
            _garment("skirt", "skirt/skirts", shop=["Skirts"], home=["Skirt"]),
            _garment("trousers", "/trousers", "/pants", "pair of trousers/", shop=["Trousers", "Track Pants"], home=["Pants"]),
            _garment("jeans", "/jeans", "pair of jeans/", "jean/", shop=["Jeans"]),
            _garment("shorts", "/shorts", "pair of shorts/", shop=["Shorts"], home=["Shorts"]),
            _garment("shoes", "/shoes", "shoe/", "pair of shoes/", shop=["Casual Shoes", "Formal Shoes"], home=["Shoes"]),
            _garment("sneakers", "/sneakers", "sneaker/", "/sports shoes", "/trainers", shop=["Sports Shoes"]),
            _garment("heels", "/heels", "/high heels", shop=["Heels"]),
            _garment("flats", "/flats", "/flat shoes", shop=["Flats"]),
            _garment("sandals", "/sandals", "sandal/", shop=["Sandals", "Sports Sandals"]),
            _garment("flip flops", "/flip flops", "flip flop/", shop=["Flip Flops"]),
            _garment("socks", "/socks", "sock/", "pair of socks/", shop=["Socks"]),
            _garment("hat", "hat/hats", "cap/caps", shop=["Caps", "Hat"], home=["Hat"]),
            _garment("tie", "tie/ties", "necktie/neckties", shop=["Ties"]),
            _garment("scarf", "scarf/scarves", "muffler/mufflers", shop=["Scarves", "Mufflers", "Stoles"]),
            _garment("belt", "belt/belts", shop=["Belts"]),
            _garment("bag", "bag/bags", "handbag/handbags", "purse/purses", shop=["Handbags", "Clutches"]),
            _garment("backpack", "backpack/backpacks", "rucksack/rucksacks", shop=["Backpacks", "Rucksacks"]),
            _garment("wallet", "wallet/wallets", shop=["Wallets"]),
            _garment("watch", "watch/watches", "wristwatch/wristwatches", shop=["Watches"]),
            _garment("sunglasses", "/sunglasses", "pair of sunglasses/", shop=["Sunglasses"]),
        )
    }
)
BY_SHOP = MappingProxyType({kind: g.name for g in GARMENTS.values() for kind in g.shop})
BY_HOME = MappingProxyType({kind: g.name for g in GARMENTS.values() for kind in g.home})

# Basic colour -> what it is called, the commonest first.
COLOURS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "black": ("black",),
        "white": ("white",),
        "grey": ("grey", "gray"),
        "brown": ("brown",),
        "beige": ("beige", "cream"),
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "blue": ("blue",),
        "navy blue": ("navy blue", "navy", "dark blue"),
        "purple": ("purple", "violet"),
        "pink": ("pink",),
    }
)
# The shop's own shades -> (basic colour, the shade in words).
SHADES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "Maroon": ("red", "maroon"), "Burgundy": ("red", "burgundy"), "Olive": ("green", "olive"),
        "Charcoal": ("grey", "charcoal"), "Grey Melange": ("grey", "grey"), "Silver": ("grey", "silver"),
        "Steel": ("grey", "steel grey"), "Metallic": ("grey", "silver"), "Cream": ("beige", "cream"),
        "Off White": ("white", "off-white"), "Khaki": ("beige", "khaki"), "Tan": ("brown", "tan"), "Gold": ("yellow", "gold"),
        "Copper": ("brown", "copper"), "Bronze": ("brown", "bronze"), "Coffee Brown": ("brown", "coffee brown"),
        "Mushroom Brown": ("brown", "mushroom brown"), "Taupe": ("brown", "taupe"), "Rust": ("orange", "rust"),
        "Peach": ("orange", "peach"), "Magenta": ("pink", "magenta"), "Rose": ("pink", "rose"),
        "Lavender": ("purple", "lavender"), "Mauve": ("purple", "mauve"), "Teal": ("green", "teal"),
        "Sea Green": ("green", "sea green"), "Lime Green": ("green", "lime green"),
        "Fluorescent Green": ("green", "bright green"), "Mustard": ("yellow", "mustard"),
        "Turquoise Blue": ("blue", "turquoise"), "Skin": ("beige", "skin-coloured"), "Nude": ("beige", "nude"),
    }
)  # fmt: skip
WEARERS = MappingProxyType({"Men": "men", "Women": "women", "child": "children"})


def colour_of_shade(shade: str) -> tuple[str, str] | None:
    """(basic colour, its name in words) of a colour as the shop writes it; None where it is no colour of ours."""
    plain = shade.strip().lower()
    return SHADES.get(shade.strip()) or ((plain, plain) if plain in COLOURS else None)


def caption(garment: str, colour: str = "", shade: str = "", wearer: str = "") -> str:
    """The plainest full caption: "a navy blue shirt for men". Names as in GARMENTS, COLOURS, WEARERS; '' leaves one out."""
    return _put(GARMENTS[garment].nouns[0], shade or colour, WEARERS.get(wearer, ""))


def captions(garment: str, colour: str = "", shade: str = "", wearer: str = "") -> tuple[str, ...]:
    """Every way to say it that is used, none twice; about half of them name the plain colour and garment alone."""
    nouns = GARMENTS[garment].nouns
    tones = (*COLOURS.get(colour, ()), *([shade] if shade and shade != colour else ()))
    whom = WEARERS.get(wearer, "")
    first = [_put(noun, tone, "") for noun in nouns for tone in tones or ("",)]
    bare = [_put(noun, "", "") for noun in nouns[:1]]
    more = [_put(nouns[0], tone, whom) for tone in tones[:1] or ("",)] if whom else []
    photo = [f"a photo of {first[0]}"]
    without_article = [" ".join(filter(None, (tones[0] if tones else "", nouns[0].name)))]
    return tuple(dict.fromkeys((*first, *bare, *more, *photo, *without_article)))


def _put(noun: Noun, tone: str, whom: str) -> str:
    """'a red dress for women', 'red trousers', 'a pair of red jeans': the article goes by the word that follows it."""
    pair, kind = ("pair of ", noun.name[8:]) if noun.name.startswith("pair of ") else ("", noun.name)
    words = pair + " ".join(filter(None, (tone, kind)))
    starts = "" if noun.article == "" else f"{article(words)} "
    return starts + words + (f" for {whom}" if whom else "")
