"""Made-up stories: what the tiny model of the golden traces learns, and what prompts are cut from."""

from __future__ import annotations

import random
from collections.abc import Iterator


def story(chooser: random.Random) -> str:
    """One story; its words are drawn with falling probability, so that a model can tell the likeliest."""

    def one(*words: str) -> str:
        return chooser.choices(words, [0.55 * 0.4**index for index in range(len(words))])[0]

    hero, friend = one("Anna", "Ben", "Zoë", "Mr. Fox"), one("the cat", "a fish 🐟", "the old café owner", "Li 深海")
    thing = one("lamp", "red boat", "map", "key")
    count = chooser.randint(2, 9)
    yesterday = one("One day", "Once upon a time", "In the morning")
    parts = [f"{yesterday}, {hero} found a {thing} in the {one('garden', 'river', 'snow')}."]
    while len(parts) < 60:
        kind = chooser.random()
        if kind < 0.2:
            parts.append(f'"{one("Look", "Wait", "Oh")}!" said {hero}. "{one("It is", "Here is")} my {thing}."')
        elif kind < 0.4:
            parts.append(f"{hero} gave the {thing} to {friend}, and {friend} {one('smiled', 'was glad', 'ran away')}.")
        elif kind < 0.6:
            parts.append(f"There were {count} stars over the {one('hill', 'sea', 'town')}, then {count + 1}.")
            count += 1
        elif kind < 0.8:
            parts.append(f"{hero} and {friend} walked to the {one('market', 'bridge', 'mill')}.")
        elif kind < 0.94:
            parts.append(f"It was {one('warm', 'cold', 'late')}, so they {one('rested', 'sang', 'went home')}.")
        else:
            parts.append("The end.")
            break
    return " ".join(parts)


def stories(seed: int) -> Iterator[str]:
    """Stories without end; equal seeds give equal ones."""
    chooser = random.Random(seed)
    while True:
        yield story(chooser)
