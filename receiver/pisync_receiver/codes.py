"""Enrollment codes: short enough to read aloud and type, long enough that nobody guesses one.

Sixteen letters and digits in groups of four, 80 random bits, without the letters people mistake (Crockford's
base 32): `K7MQ-2XPD-9RTA-WW4Z`. Case, dashes and spaces do not matter, and O, I and L are read as 0 and 1.
"""

import secrets
from typing import Final

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_GROUPS: Final = 4
_GROUP: Final = 4
_MISTAKEN: Final = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})


def new_code() -> str:
    """A fresh code; show it once and keep only the hash of its `normalized` form."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))


def normalized(code: str) -> str:
    """What a typed code means: two spellings of one code have one `normalized` form."""
    return code.strip().upper().translate(_MISTAKEN)
