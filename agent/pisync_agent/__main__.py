"""The command `pisync`, also as `python -m pisync_agent`."""

import sys

from pisync_common import streams

_LIBRARIES = ("httpx", "platformdirs", "tenacity")


def main() -> int:
    """Run the command line; return its exit code."""
    return streams.run("pisync", _main)


def _main() -> int:
    """Without a library of the agent's extra, say so in one line and return 2."""
    try:
        from pisync_agent.commands.cli import main

        return main()
    except ModuleNotFoundError as error:
        if error.name not in _LIBRARIES:
            raise
        print(
            f'pisync: {error.name} is not installed; this installation lacks the "agent" extra. Install the package '
            "pisync-agent, as docs/device.md describes, or the wheel together with requirements-agent.lock",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
