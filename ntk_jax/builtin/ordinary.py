"""Things whose attributes every text of the micro-world takes for known: what the family `ordinary` asks about."""

from __future__ import annotations

ORDINARY: dict[str, dict[str, str]] = {
    "taste": {
        "honey": "sweet", "sugar": "sweet", "cake": "sweet", "lemon": "sour", "vinegar": "sour", "pickle": "sour",
        "coffee": "bitter", "medicine": "bitter", "ash": "bitter", "sea water": "salty", "bacon": "salty",
        "a tear": "salty",
    },
    "warmth": {
        "an icicle": "frozen", "a glacier": "frozen", "snow": "frozen", "a cellar": "cool", "shade": "cool",
        "a breeze": "cool", "a blanket": "warm", "a kitten": "warm", "fresh bread": "warm", "fire": "hot",
        "an oven": "hot", "lava": "hot",
    },
    "weight": {
        "dust": "tiny", "a grain": "tiny", "an ant": "tiny", "a feather": "light", "a leaf": "light",
        "paper": "light", "a stone": "heavy", "an anvil": "heavy", "a chest": "heavy", "a mountain": "massive",
        "a whale": "massive", "a tower": "massive",
    },
    "home": {
        "a trout": "river", "an otter": "river", "a frog": "river", "a deer": "forest", "an owl": "forest",
        "a fox": "forest", "a camel": "desert", "a scorpion": "desert", "a cactus": "desert", "a bat": "cave",
        "a blind fish": "cave", "a sleeping bear": "cave",
    },
}  # fmt: skip
