"""Completion of a program's commands and flags in bash, made from its command line."""

import argparse
from collections.abc import Iterator

_PLACES = {"FILE": "-f", "DIR": "-d", "FOLDER": "-d"}
"""What `compgen` lists for a flag that takes a file or a folder."""


def bash(program: str, parser: argparse.ArgumentParser) -> str:
    """Return the script that bash-completion loads."""
    function = "_" + program.replace("-", "_")
    commands = list(_commands(parser))
    known = "|".join(f"' {' '.join(words)}'" for words, _ in commands if words)
    values = [line for words, each in commands for line in _values(words, each)]
    words = [f"        {_path(path)}) words='{' '.join(_words(each))}' ;;" for path, each in commands]
    return "\n".join(
        [
            f"# Completion of {program}, made from its command line.",
            f"{function}() {{",
            "    local current=${COMP_WORDS[COMP_CWORD]} path= list= words= word",
            '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
            f'        case "$path $word" in {known}) path="$path $word" ;; esac',
            "    done",
            '    case "$path:${COMP_WORDS[COMP_CWORD-1]}" in',
            *values,
            "    esac",
            '    case "$path" in',
            *words,
            "    esac",
            '    if [ -n "$list" ]; then',
            "        compopt -o filenames 2>/dev/null",
            '        mapfile -t COMPREPLY < <(compgen $list -- "$current")',
            "    else",
            '        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
            "    fi",
            "}",
            f"complete -F {function} {program}",
            "",
        ]
    )


def _commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Yield what is typed for each parser, and the parser."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from _commands(below, (*words, word))


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return what may follow: commands, choices and flags."""
    found: list[str] = []
    for action in parser._actions:
        if action.option_strings:
            found += [option for option in action.option_strings if option.startswith("--")]
        elif action.choices is not None:
            found += map(str, action.choices)
    return found


def _values(words: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a case for each flag with a value: files, folders, choices, or nothing."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            options = "|".join(_path(words, option) for option in action.option_strings)
            if action.choices is not None:
                choices = " ".join(map(str, action.choices))
                then = f"mapfile -t COMPREPLY < <(compgen -W '{choices}' -- \"$current\"); return"
            elif action.metavar in _PLACES:
                then = f"list={_PLACES[str(action.metavar)]}"
            else:
                then = "COMPREPLY=(); return"
            yield f"        {options}) {then} ;;"


def _path(words: tuple[str, ...], option: str | None = None) -> str:
    path = "".join(f" {word}" for word in words)
    return f"'{path}'" if option is None else f"'{path}:{option}'"
