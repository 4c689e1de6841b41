"""What `pisync sync` shows while it works, and what it says at the end."""

from collections.abc import Mapping
from typing import Any, TextIO

from pisync_agent.words import count, size, span

_CLEAR = "\r\x1b[K"


class Meter:
    """A live line on a terminal; elsewhere a line when the step changes. Progress is given as on the socket."""

    def __init__(self, stream: TextIO, *, live: bool | None = None) -> None:
        self._stream = stream
        self._live = stream.isatty() if live is None else live
        self._step = ""
        self._shown = False

    def show(self, progress: Mapping[str, Any]) -> None:
        if self._live:
            self._write(_CLEAR + line(progress))
            self._shown = True
        elif progress["step"] != self._step:
            self._write(line(progress) + "\n")
        self._step = str(progress["step"])

    def end(self) -> None:
        """The live line goes; what follows begins on a clean one."""
        if self._shown:
            self._write(_CLEAR)
            self._shown = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def line(progress: Mapping[str, Any]) -> str:
    """`sending: 1,200 of 5,000 events, 64.0 KiB, 1.2 Mbit/s, 40 s left`."""
    parts = []
    if progress.get("of"):
        parts.append(f"{progress['events']:,} of {count(progress['of'], 'event')}")
    if progress.get("bytes"):
        parts.append(size(progress["bytes"]))
    if progress.get("speed_mbit"):
        parts.append(f"{progress['speed_mbit']:.2g} Mbit/s")
    if progress.get("seconds_left") is not None:
        parts.append(f"{span(progress['seconds_left'])} left")
    return ": ".join(filter(None, (str(progress["step"]), ", ".join(parts))))


def summary(result: Mapping[str, Any]) -> str:
    """One sync run in a few words, from its JSON."""
    known = f" ({result['duplicates']:,} known already)" if result["duplicates"] else ""
    speed = f", {result['speed_mbit']:.2g} Mbit/s" if result.get("speed_mbit") else ""
    parts = [
        f"delivered {count(result['delivered'], 'event')}{known} in {result['seconds']:.1f} s"
        f" ({size(result['bytes_sent'])} sent{speed})"
    ]
    if result["rejected"]:
        parts.append(f"{count(result['rejected'], 'event')} rejected and kept: see `pisync queue dead`")
    parts.append(f"{count(result['waiting'], 'event')} wait" if result["waiting"] else "nothing waits")
    return "; ".join(parts)
