"""The repository speaks plain technical English: these words and phrases appear nowhere in it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
BANNED: Final = (
    "nobody", "whoever", "somebody", "anybody", "everybody", "anew", "so many", "be had", "by itself", "by themselves",
    "hears of", "is told", "are told", "what waits", "who reads on",
    "this one", "that one", "another one", "ones", "one's", "one who", "one that", "one which", "one of them",
)  # fmt: skip
"""Words for test names count too: `_` separates words there."""
INDEX_INSTALL: Final = r"pip install[^\n]*\bpisync(?:\[|'|\"|$)"
"""The name on the public index belongs to an unrelated program: packages are built from the tree."""
PHRASES: Final = "|".join(BANNED).replace(" ", r"[\s_]+")
PATTERN: Final = re.compile(rf"(?<![a-z])(?:{PHRASES})(?![a-z])|{INDEX_INSTALL}", re.IGNORECASE | re.MULTILINE)
NO_TEXT: Final = {".lock", ".mo", ".svg", ".webp"}


def texts() -> Iterator[str]:
    """Yield the path of each text of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if Path(name).suffix not in NO_TEXT and name != "tests/unit/test_language.py":
            yield name


def test_texts_have_no_banned_words() -> None:
    found = [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for name in texts()
        for text in [(ROOT / name).read_text()]
        for match in PATTERN.finditer(text)
    ]

    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "until somebody asks", "Nobody waits", "def test_whoever_asks_is_answered() -> None:",
        "sent anew_",
        "it ends by\n    itself", "the ones before it", "pip install pisync", "pip install 'pisync[agent]'",
        'run("pip", f"pip install --upgrade \'pisync[{extra}]\'")',
    ],
)  # fmt: skip
def test_banned_words_are_found(line: str) -> None:
    assert PATTERN.search(line)


@pytest.mark.parametrize(
    "line", ["pip install --no-deps pisync-*.whl", "/opt/pisync/bin/pip install .", "cones, zones"]
)
def test_plain_lines_pass(line: str) -> None:
    assert not PATTERN.search(line)
