"""Settings: one table a program yields its flags, variables, TOML keys, defaults, help and documentation.

A value is taken from the command's flag, else from the variable `<PREFIX><NAME>`, else from the TOML file, else from
the default; it remembers its source. It is written as the same text everywhere (`256MiB`, `15m`, `on`).

    PORT = Setting(name="port", default="8080", parse=integer(0, 65535), help="the port to listen on")
    settings = load([PORT], prefix="PISYNC_RECEIVER_", environ=os.environ, flags={"port": None}, toml_file=None)
    settings[PORT]  # 8080, an int
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from pisync_common.errors import SettingError
from pisync_common.limits import LARGEST_GIB, LONGEST_DAYS, MIB

T = TypeVar("T")
Parser = Callable[[str], T]
"""Converts text to a value; raises ValueError that says what is wrong, such as "not a duration"."""

DEFAULT: Final = "default"
MASK: Final = "********"

_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_UNITS: Final = {
    "": 1, "b": 1, "k": 2**10, "kib": 2**10, "m": 2**20, "mib": 2**20, "g": 2**30, "gib": 2**30,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip
_ON: Final = ("on", "true", "yes", "1")
_OFF: Final = ("off", "false", "no", "0")
_NUMBER: Final = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_SECONDS = re.compile(_NUMBER)
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|s|m|h|d|w)")
_SIZE = re.compile(rf"({_NUMBER}) ?([a-z]*)")
# Compiled when a value is shown, which few commands do.
_URL_USER: Final = r"(?<=://)([^/?#\s]*?):([^/?#\s]*)@"
_URL_QUERY: Final = r"(?i)([?&](?:password|passwd|token|secret|key)=)[^&#\s]*"


# Named tuples: to import `dataclasses` takes a quarter of the time of `pisync status`.
class Setting(NamedTuple, Generic[T]):
    """One setting. Its `name` is the TOML key; `--a-b` and `<PREFIX>A_B` follow from it."""

    name: str
    default: str | Callable[[], str]
    """As a user would write it; a callable if it depends on the machine."""
    parse: Parser[T]
    help: str
    secret: bool = False
    metavar: str | None = None
    flag: bool = True
    """Whether it has a flag; every user of the machine can read flags."""
    default_shown: str | None = None
    """The default in help and documentation, if it is not `default` itself."""

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    def variable(self, prefix: str) -> str:
        return prefix + self.name.upper()

    def stated_default(self) -> str:
        if self.default_shown is not None:
            return self.default_shown
        return self.default if isinstance(self.default, str) else self.default()


class Described(NamedTuple):
    """A setting as `config` shows it, with secrets masked."""

    name: str
    value: str
    source: str


class _Given(NamedTuple):
    """A value as text, and its source."""

    text: str
    source: str


class Settings:
    """Checked values. `settings[SETTING]` has the type that the setting's parser returns."""

    def __init__(self, given: Mapping[Setting[Any], _Given], values: Mapping[Setting[Any], Any]) -> None:
        self._given = given
        self._values = values

    def __getitem__(self, setting: Setting[T]) -> T:
        value: T = self._values[setting]
        return value

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{row.name}={row.value!r}' for row in self.describe())})"

    def source(self, setting: Setting[Any]) -> str:
        """Return `flag --port`, `variable PISYNC_RECEIVER_PORT`, `file /etc/….toml` or `default`."""
        return self._given[setting].source

    def describe(self) -> list[Described]:
        """Return each setting in the table's order, with its value as text (secrets masked) and its source."""
        return [
            Described(name=setting.name, value=_masked(setting, given.text), source=given.source)
            for setting, given in self._given.items()
        ]


def load(
    settings: Sequence[Setting[Any]],
    *,
    prefix: str,
    environ: Mapping[str, str],
    flags: Mapping[str, str | None],
    toml_file: Path | None,
) -> Settings:
    """Take each setting from its nearest source and check it. `flags` maps names to texts, None where not given.

    An empty variable counts as not set. Raises SettingError naming setting, value and source.
    """
    from_file = _read_file(toml_file, settings) if toml_file else {}
    given = {setting: _given(setting, prefix, environ, flags, from_file, toml_file) for setting in settings}
    return Settings(given, {setting: _parsed(setting, value) for setting, value in given.items()})


def find_file(flag: str | None, *, prefix: str, environ: Mapping[str, str], default: Path | None) -> Path | None:
    """Return the TOML file: the file of `--config`, else of the variable `<PREFIX>CONFIG`, else `default` if it exists.

    Raises SettingError if a named file does not exist. A file that exists and cannot be read is left to `load`.
    """
    variable = prefix + "CONFIG"
    for name, source in ((flag, "flag --config"), (environ.get(variable) or None, f"variable {variable}")):
        if name is not None:
            try:
                named = path(name)
            except ValueError as error:
                raise SettingError(f"config = {name!r} ({source}): {error}") from error
            if not is_there(named):
                raise SettingError(f"config = {name!r} ({source}): there is no such file")
            return named
    return default if default is not None and is_there(default) else None


def is_there(place: Path) -> bool:
    """Return whether there is something at a path, also where this user may not look: that is no reason to ignore it.

    A symbolic link counts, whatever it leads to.
    """
    try:
        place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def add_flags(parser: argparse.ArgumentParser, settings: Iterable[Setting[Any]], *, prefix: str) -> None:
    """Add a flag for each setting to `parser`, with help from the table. Values stay text: `load` checks them."""
    for setting in settings:
        if setting.flag:
            stated = setting.stated_default()
            ending = f" (default: {stated}; {setting.variable(prefix)})" if stated else f" ({setting.variable(prefix)})"
            text = (setting.help + ending).replace("%", "%%")
            parser.add_argument(setting.option, dest=setting.name, metavar=setting.metavar, help=text)


def flags_of(arguments: argparse.Namespace, settings: Iterable[Setting[Any]]) -> dict[str, str | None]:
    """Return what the command line gave for each setting, for `load`."""
    return {setting.name: getattr(arguments, setting.name, None) for setting in settings}


def document(settings: Iterable[Setting[Any]], *, prefix: str) -> str:
    """Return the table as Markdown, for the guides."""
    lines = ["| setting | flag | variable | default | what it does |", "|---|---|---|---|---|"]
    for setting in settings:
        flag = f"`{setting.option}`" if setting.flag else ""
        default = f"`{stated}`" if (stated := setting.stated_default()) else ""
        cells = (f"`{setting.name}`", flag, f"`{setting.variable(prefix)}`", default, setting.help.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mask_url(text: str) -> str:
    """Return `text` without the passwords in its URLs."""
    return re.sub(_URL_QUERY, rf"\1{MASK}", re.sub(_URL_USER, rf"\1:{MASK}@", text))


# Parsers of values


def text(value: str) -> str:
    return value


def path(value: str) -> Path:
    """Parse a path to an absolute one; `~` is the user's home. `..` stays: behind a link it is the kernel's to resolve.

    Raises ValueError.
    """
    if not value or "\0" in value:
        raise ValueError("not a path, such as /var/lib/pisync")
    try:
        os.fsencode(value)
        return Path(value).expanduser().absolute()
    except UnicodeEncodeError as error:
        raise ValueError("has characters that this system's locale cannot encode; use a UTF-8 locale") from error
    except (RuntimeError, OSError) as error:  # no such user, or the current folder was removed
        raise ValueError(f"its beginning is unknown ({error}); write the whole path, from / on") from error


def users_folder(find: Callable[[], str]) -> str:
    """Return the user's folder that `find` finds as platformdirs does. Raises ValueError for a user without a home."""
    try:
        found = find()
    except RuntimeError:
        found = ""
    if not found.startswith("/"):
        raise ValueError("this user has no home folder (HOME); name a place")
    return found


def optional(parse: Parser[T]) -> Parser[T | None]:
    """Parse an empty text as None."""
    return lambda value: parse(value) if value else None


def integer(lowest: int, highest: int | None = None) -> Parser[int]:
    """Parse a whole number within inclusive bounds."""
    wanted = f"a whole number from {lowest} to {highest}" if highest is not None else f"a whole number from {lowest} up"

    def parse(value: str) -> int:
        number = int(value) if re.fullmatch(r"[+-]?[0-9]{1,18}", value) else None
        if number is None or number < lowest or (highest is not None and number > highest):
            raise ValueError(f"not {wanted}")
        return number

    return parse


def boolean(value: str) -> bool:
    """Parse `on`, `true`, `yes`, `1` or `off`, `false`, `no`, `0`."""
    if value.lower() not in _ON + _OFF:
        raise ValueError("not on or off")
    return value.lower() in _ON


def choice(*names: str) -> Parser[str]:
    """Parse one of `names`."""

    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(f"not one of {', '.join(names)}{_nearest(value, names)}")
        return value

    return parse


def duration(value: str) -> float:
    """Seconds, from `90s`, `15m`, `1h30m`, `7d`, `2w`; a bare number is seconds."""
    compact = value.strip().lower()
    if _SECONDS.fullmatch(compact):
        compact += "s"
    if not compact or _DURATION_PART.sub("", compact):
        raise ValueError("not a length of time, such as 90s, 15m, 1h30m or 7d")
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(compact))
    if seconds > LONGEST_DAYS * _DURATION_UNITS["d"]:
        raise ValueError(f"too long; the longest is {LONGEST_DAYS}d")
    return seconds


def some_time(value: str) -> float:
    """Parse a duration longer than zero."""
    if (seconds := duration(value)) <= 0:
        raise ValueError("must be longer than 0s")
    return seconds


def size(value: str) -> int:
    """Bytes, from `256MiB`, `64KiB`, `1GiB` or, in thousands, `256MB`; a bare number is bytes."""
    match = _SIZE.fullmatch(value.strip().lower())
    if not match or match[2] not in _SIZE_UNITS:
        raise ValueError("not a size, such as 256MiB or 64KiB")
    number = float(match[1]) * _SIZE_UNITS[match[2]]
    if number > LARGEST_GIB * _SIZE_UNITS["gib"]:
        raise ValueError(f"too large; the largest is {LARGEST_GIB}GiB")
    return int(number)


# How `load` works.


def _given(
    setting: Setting[Any],
    prefix: str,
    environ: Mapping[str, str],
    flags: Mapping[str, str | None],
    from_file: Mapping[str, str],
    toml_file: Path | None,
) -> _Given:
    variable = setting.variable(prefix)
    if (flag := flags.get(setting.name)) is not None:
        return _Given(text=flag, source=f"flag {setting.option}")
    if environ.get(variable):
        return _Given(text=environ[variable], source=f"variable {variable}")
    if setting.name in from_file:
        return _Given(text=from_file[setting.name], source=f"file {toml_file}")
    try:
        return _Given(text=setting.default if isinstance(setting.default, str) else setting.default(), source=DEFAULT)
    except ValueError as error:
        ways = f"{setting.option} or {variable}" if setting.flag else variable
        raise SettingError(f"{setting.name} has no default here: {error} with {ways}") from error


def _parsed(setting: Setting[T], given: _Given) -> T:
    try:
        return setting.parse(given.text)
    except ValueError as error:
        shown = _masked(setting, given.text)
        raise SettingError(f"{setting.name} = {shown!r} ({given.source}): {error}") from error


def _read_file(file: Path, settings: Sequence[Setting[Any]]) -> dict[str, str]:
    import tomllib  # where no file is used, no command pays for it

    try:
        with file.open("rb") as stream:
            if len(content := stream.read(MIB)) == MIB:
                raise ValueError("more than 1 MiB")
        values = tomllib.loads(content.decode("utf-8-sig"))  # editors of Windows put a byte order mark before it
    except OSError as error:
        raise SettingError(f"file {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"file {file} cannot be read as TOML in UTF-8: {error}") from error
    names = [setting.name for setting in settings]
    for key in values:
        if key not in names:
            raise SettingError(f"{key} (file {file}): there is no such setting{_nearest(key, names)}")
    return {key: _as_text(key, value, file) for key, value in values.items()}


def _as_text(key: str, value: object, file: Path) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() if abs(value) >= 10**30:  # larger than any setting, and too long to print
            raise SettingError(f"{key} (file {file}): the number is too large")
        case str() | int() | float():
            return str(value)
        case _:
            raise SettingError(f"{key} (file {file}): write it as one text, number or true/false")


def _nearest(name: str, names: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _masked(setting: Setting[Any], value: str) -> str:
    if setting.secret:
        return MASK if value else ""
    return mask_url(value)
