"""Whether the link is paid for by its bytes, as NetworkManager knows or guesses: a mobile network, a hotspot.

Asked through `busctl`, which comes with systemd. Where either is missing, or does not answer, no link is metered.
"""

import logging
import subprocess
from collections.abc import Sequence
from typing import Final

log = logging.getLogger(__name__)

BUSCTL: Final = (
    "busctl", "--system", "--timeout=2", "--auto-start=no", "get-property",
    "org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered",
)  # fmt: skip
PATIENCE_S: Final = 5.0
"""The longest wait for the command, which has a time-out of its own."""

_METERED: Final = (b"u 1", b"u 3")
"""NM_METERED_YES and NM_METERED_GUESS_YES."""


def is_metered(command: Sequence[str] = BUSCTL, *, patience: float = PATIENCE_S) -> bool:
    """Return whether NetworkManager says that the present link is metered."""
    try:
        asked = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=patience,
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("cannot ask NetworkManager whether the link is metered: %s", error)
        return False
    return asked.returncode == 0 and asked.stdout.strip() in _METERED
