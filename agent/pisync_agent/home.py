"""Where the agent's folder is, found without the weight of the whole settings table."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PREFIX: Final = "PISYNC_AGENT_"
SYSTEM_FILE: Final = Path("/etc/pisync/agent.toml")


def default_home() -> Path:
    """The user's data folder, as platformdirs says."""
    import platformdirs  # reads more than most commands need

    return Path(platformdirs.user_data_dir("pisync"))


def quick_home(flag: str | None, config: str | None, environ: Mapping[str, str]) -> Path | None:
    """The folder where flag or variable names it; None where only the settings can tell."""
    named = flag or environ.get(PREFIX + "HOME")
    if not named or config:
        return None
    return Path(os.path.abspath(os.path.expanduser(named)))  # noqa: PTH100, PTH111 - as the setting's own parser does
