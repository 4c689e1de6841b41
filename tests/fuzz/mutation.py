"""Bodies that are nearly right: JSON samples changed in structure, in values and in bytes, the same for the same seed.

PISYNC_FUZZ_SEED chooses other bodies, PISYNC_FUZZ_TIMES that many times as many.
"""

import gzip
import json
import os
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, Final

SEED: Final = int(os.environ.get("PISYNC_FUZZ_SEED", "20261129"))
TIMES: Final = int(os.environ.get("PISYNC_FUZZ_TIMES", "1"))

NUMBERS: Final = (
    *("0", "-1", "-0", "1", "2", "1.0", "1.5", "-0.0", "1e3", "1E+2", "5e-324", "1e308", "1e400", "-1e400", "0.1e-400"),
    *map(str, (2**31, 2**32, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 2**70, -(2**53), -(2**63), -(2**63) - 1)),
    *("9" * 400, "9" * 5000, "1" + "0" * 30 + ".0", "01", "+1", "0x10", "1.", ".5", "1_0", "NaN", "Infinity"),
    *("-Infinity", "253402300799999", "253402300800000", "-62135596800001", "9007199254740991.0"),
)
TEXTS: Final = (
    *("", " ", ".", "..", "-", "a", "A.b", "a.b", "null", "5", "-rf", "@everyone", "../x", "a/b", "=1+1", "s-17"),
    *("é", "\u0660\u0661", "\u202e", "\ufeff", "\ufffd", "\U0001f600", "\u200d", "शिक्षा", "مرحبا", "\uff1d1"),
    *(
        "a" * 128,
        "a" * 129,
        "a" * 257,
        "é" * 256,
        "a" * 513,
        "a" * 3000,
        "\x7f",
        "a\nb",
        "a\u2028b",
        "a\x85b",
        "\x1b[31m",
    ),
)
ESCAPES: Final = (
    *(r"\ud800", r"\udc00", r"\udfff\ud800", r"\ud83d\ude00", r"\u0000", r"a\u0000b", r"\u2028", r"\u0085", r"\x00"),
    *(r"\u12", r"\/", r"\b\f\n\r\t", "\x00", "\x01", "\t", "\n", "\x1f"),
)
"""What stands between quotation marks as it is."""
TIMES_OF_ALL_KINDS: Final = (
    *("2026-11-23T10:00:00Z", "2026-11-23T10:00:00.000Z", "2026-11-23t10:00:00z", "2026-11-23 10:00:00+03:00"),
    *("9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59.999Z"),
    *("0001-01-01T00:00:00.000Z", "2026-06-30T23:59:60Z", "2026-06-30T23:59:60.000Z", "9999-12-31T23:59:60Z"),
    *("2026-02-30T00:00:00Z", "2026-11-23T24:00:00Z", "2026-11-23T10:00:00.1234567890Z", "2026-11-23T10:00:00.1Z"),
    *("2026-11-23T10:00:00+24:00", "2026-11-23T10:00:00+23:59", "2026-11-23T10:00:00", "2026-11-23", "1795428000000"),
    *("2026-11-23T10:00:00.\u0661\u0662\u0663Z", "\u0662026-11-23T10:00:00.000Z", "2026-11-23T10:00:00.000Z "),
    *("2026-11-23T10:00:00.+00Z", "2026-11-23T10:00: 0.000Z", "1969-12-31T23:59:59.999Z", "+2026-11-23T10:00:00Z"),
)
STRUCTURES: Final = (
    *(
        "null",
        "true",
        "false",
        "[]",
        "{}",
        "[1]",
        '{"a":1}',
        '{"a":1,"a":2}',
        "[[[[]]]]",
        '{"":{"":{}}}',
        "[null,null]",
    ),
    *("[" * n + "]" * n for n in (99, 100, 101, 200, 3000)),
    *('{"a":' * n + "1" + "}" * n for n in (99, 100, 101, 3000)),
    "[" * 20_000,
    "[" + "0," * 2000 + "0]",
    '{"text":"' + "x" * 66_000 + '"}',
)
BYTES: Final = (
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x28\xa1", b"\x80", b"\x00", b"\xef\xbb\xbf"),
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\r\n", b"//x\n", b"'", b"\x1b"),
)
WHOLE: Final = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "latin-1", "cp1252")
_MARK: Final = "\ue000{}\ue001"


class Mutator:
    """Makes bodies from samples, which are JSON texts."""

    def __init__(self, name: str, samples: Sequence[object]) -> None:
        self.rng = random.Random(f"{SEED} {name}")
        self._samples = [json.dumps(sample, ensure_ascii=False) for sample in samples]
        self._raw: list[str] = []

    def bodies(self, count: int) -> Iterator[bytes]:
        for _ in range(count * TIMES):
            yield self.body()

    def body(self) -> bytes:
        """Return the next body."""
        rng = self.rng
        self._raw = []
        value = self._sample()
        for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
            value = self._changed(value)
        text = self._rendered(value)
        if rng.random() < 0.03:
            return text.encode(rng.choice(WHOLE), "replace")
        data = text.encode("utf-8", "surrogatepass")
        while rng.random() < 0.25:
            data = self._with_bytes_changed(data)
        return data

    def gzipped(self, body: bytes) -> bytes:
        """Return it compressed, and sometimes damaged."""
        packed = gzip.compress(body, 1, mtime=0)
        return self._with_bytes_changed(packed) if self.rng.random() < 0.4 else packed

    def _sample(self) -> Any:
        return json.loads(self.rng.choice(self._samples))

    # Values

    def _changed(self, value: Any) -> Any:
        """Change one place of a JSON value."""
        places = list(_places(value))
        if not places:
            return self._strange()
        holder, key = self.rng.choice(places)
        match self.rng.randrange(12):
            case 0 | 1 | 2 | 3 | 4:
                holder[key] = self._strange()
            case 5 if isinstance(holder, dict):
                del holder[key]
            case 6 if isinstance(holder, dict):
                holder[self.rng.choice((*TEXTS, key.upper(), key + " ", self._mark(self._text())))] = holder.pop(key)
            case 7 if isinstance(holder, dict):  # a key twice
                holder[self._mark(json.dumps(key))] = self._strange()
            case 8:
                holder[key] = self.rng.choice(([holder[key]], {"a": holder[key]}, [holder[key], deepcopy(holder[key])]))
            case 9:  # copies, because either may hold the other
                other, place = self.rng.choice(places)
                holder[key], other[place] = deepcopy(other[place]), deepcopy(holder[key])
            case 10:
                found = list(_places(self._sample()))
                other, place = self.rng.choice(found)
                holder[key] = other[place]
            case 11 if isinstance(holder, list):
                holder.insert(key, deepcopy(holder[key]))
            case _:
                holder[key] = self._strange()
        return value

    def _strange(self) -> Any:
        rng = self.rng
        kind = rng.random()
        if kind < 0.35:
            return self._mark(rng.choice(NUMBERS))
        if kind < 0.55:
            return self._mark(self._text())
        if kind < 0.75:
            return rng.choice(TIMES_OF_ALL_KINDS)
        if kind < 0.95:
            return self._mark(rng.choice(STRUCTURES[:-4] if rng.random() < 0.97 else STRUCTURES))
        return rng.randrange(-(2**40), 2**60)

    def _text(self) -> str:
        """Return a JSON text between quotation marks, perhaps not a valid text."""
        if self.rng.random() < 0.5:
            return f'"{self.rng.choice(ESCAPES)}"'
        return json.dumps(self.rng.choice(TEXTS), ensure_ascii=self.rng.random() < 0.5)

    def _mark(self, raw: str) -> str:
        """Return a text that stands for raw JSON until the value is rendered."""
        self._raw.append(raw)
        return _MARK.format(len(self._raw) - 1)

    def _rendered(self, value: Any) -> str:
        text = json.dumps(value, ensure_ascii=False, separators=self.rng.choice(((",", ":"), (", ", ": "))))
        for number, raw in enumerate(self._raw):
            text = text.replace(f'"{_MARK.format(number)}"', raw)
        return text

    # Bytes

    def _with_bytes_changed(self, data: bytes) -> bytes:
        rng = self.rng
        at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        match rng.randrange(8):
            case 0 if data:
                at = min(at, len(data) - 1)
                return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
            case 1:
                return data[:at]
            case 2:
                return data[:at] + data[to:]
            case 3:
                return data[:to] + data[at:] if to - at < 10_000 else data[:at]
            case 4:
                return data[:at] + rng.randbytes(rng.randrange(1, 5)) + data[at:]
            case 5:
                other = rng.choice(self._samples).encode()
                return data[:at] + other[rng.randrange(len(other)) :]
            case 6:
                return rng.choice(BYTES) + data if rng.random() < 0.5 else data + rng.choice(BYTES)
            case _:
                return data[:at] + rng.choice(BYTES) + data[at:]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a value with each of its keys."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from _places(inner)
