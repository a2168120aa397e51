"""Keys and values to hide: `brave-otter`, `4820193`, UUIDs; drawn one by one, or as many as asked.

Growing(draw_all("word", generator), "...").first(2)   → ["brave-otter", "dusty-canoe"]
the same .first(3)                                     → ["brave-otter", "dusty-canoe", "..."]
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Literal

import numpy as np

from giraffe_cli.errors import InvalidInput

ADJECTIVES = (
    "able acid aged alert amber ample angry apt arid ashen avid aware bald bare basic bitter black "
    "bland blank blind blue blunt bold brave brief bright brisk broad broken brown busy calm "
    "careful cheap chief chilly civil clean clear clever close cloudy clumsy coarse cold common "
    "cool coral costly crisp cruel curly curious daily damp dark dear deep dense distant dizzy "
    "double dry dull dusty eager early easy elder empty equal even exact faint fair famous fancy "
    "fast fierce final fine firm fit flat fluffy fond foreign formal fragile frank free fresh "
    "frosty full funny gentle giant giddy glad gloomy golden grand gray great green grim happy "
    "hard harsh hasty heavy hidden high hollow honest hot huge humble hungry icy ideal idle inner "
    "jolly keen kind large late lazy lean level light limp little lively local lonely long loose "
    "loud low loyal lucky mad major mellow merry mild minor misty modern modest moist muddy narrow "
    "neat new nimble noble noisy odd old open outer pale patient plain polite poor proud pure "
    "quick quiet rapid rare raw ready red rich ripe rough round royal rusty sad safe salty sandy "
    "scarce secret sharp shiny short shy silent silly silver simple slim slow small smart smooth "
    "snowy sober soft solar solid sour spare steady steep stern stiff still stormy strange strict "
    "strong sudden sunny sweet swift tall tame tender thick thin thirsty tidy tight tiny tired "
    "tough true urban usual vain vast vivid wary warm weary wet white whole wide wild wise witty "
    "wooden young"
).split()
NOUNS = (
    "acorn actor anchor animal ankle apple apron arch arrow artist atlas attic autumn badge baker "
    "banjo bank barn barrel basin basket beach beacon bear beaver bell bench berry bird blanket "
    "boat bottle branch bread brick bridge broom brush bucket button cabin cable camel candle "
    "canoe canyon captain carpet castle cave cellar chain chair cheese cherry child church circle "
    "city clock cloud coast coat coin comet compass cookie copper cotton cousin cradle crane crown "
    "curtain dancer desert desk diary doctor donkey door dragon drawer dream drum duck eagle earth "
    "editor elbow engine farmer feather fence ferry field finger fish flag flame flower flute "
    "forest fork fountain fox frog garden garlic gate giant glacier glove goat grape guitar hammer "
    "harbor hat hawk helmet hill honey horse hotel house island jacket jewel judge kettle kitchen "
    "knife ladder lake lamp lantern lawyer leaf lemon letter library lion lizard lobster machine "
    "magnet maple map market mask meadow melon mirror monkey moon mother mountain mouse museum "
    "needle nest nurse ocean olive onion orchard otter oven owl oyster paddle palace panda paper "
    "parrot path peach pearl pebble pencil pepper piano pigeon pillow pilot pine pirate planet "
    "plate pocket poem pond potato prince puzzle queen rabbit radio raven ribbon rice ring river "
    "road robin rocket roof rope rose sailor salmon school sea seed shadow sheep shell ship shirt "
    "shoe singer sister snake sofa soldier spider spoon squirrel stable station stone street "
    "summer swan table tailor teacher temple tiger tower train tree trumpet tulip turtle uncle "
    "valley vessel village violin wagon walnut water weather whale wheel willow window winter wolf "
    "writer yard zebra"
).split()


def _pair(place: int) -> str:
    return f"{ADJECTIVES[place // len(NOUNS)]}-{NOUNS[place % len(NOUNS)]}"


def random_key(generator: np.random.Generator) -> str:
    """One of about 66,000 pairs of an adjective and a noun."""
    adjective = ADJECTIVES[int(generator.integers(len(ADJECTIVES)))]
    return f"{adjective}-{NOUNS[int(generator.integers(len(NOUNS)))]}"


def five_digits(generator: np.random.Generator) -> str:
    """Five digits, as passkeys have."""
    return str(generator.integers(10_000, 100_000))


def number(generator: np.random.Generator) -> str:
    """Seven digits, as RULER's numbers have."""
    return str(generator.integers(1_000_000, 10_000_000))


def random_uuid(generator: np.random.Generator) -> str:
    """A UUID of version 4."""
    return str(uuid.UUID(bytes=generator.bytes(16), version=4))


Kind = Literal["word", "five-digits", "number", "uuid"]
Draw = Callable[[np.random.Generator], str]
DRAWN: dict[Kind, Draw] = {
    "word": random_key,
    "five-digits": five_digits,
    "number": number,
    "uuid": random_uuid,
}


def draw_all(kind: Kind, generator: np.random.Generator) -> Iterator[str]:
    """Different ones of a kind, until there are no more: 66,000 words, 90,000 of five digits."""
    if kind == "word":
        yield from map(_pair, generator.permutation(len(ADJECTIVES) * len(NOUNS)).tolist())
    elif kind == "five-digits":
        yield from map(str, (10_000 + generator.permutation(90_000)).tolist())
    else:
        seen: set[str] = set()
        while True:
            value = DRAWN[kind](generator)
            if value not in seen:
                seen.add(value)
                yield value


class Growing:
    """The first items of a stream: the same ones however many are asked for, and how often."""

    def __init__(self, stream: Iterator[str], what: str) -> None:
        self._stream, self._items, self._what = stream, list[str](), what

    def first(self, count: int) -> list[str]:
        """`count` items from the first on.

        Raises:
            InvalidInput: the stream has fewer.
        """
        self._items.extend(islice(self._stream, max(0, count - len(self._items))))
        if len(self._items) < count:
            raise InvalidInput(
                f"{self._what}: {count} different ones are needed, there are {len(self._items)}",
                "evaluate shorter --lengths, or leave the task out of --tasks",
            )
        return self._items[:count]
