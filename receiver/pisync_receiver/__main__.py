"""The entry point of `pisync-receiver`."""

import sys

from pisync_common import streams

_LIBRARIES = {"msgspec", "starlette", "uvicorn", "httptools", "uvloop", "httpx", "platformdirs", "prometheus_client"}


def main() -> int:
    """Run one command; return its exit code."""
    return streams.run("pisync-receiver", _main)


def _main() -> int:
    """Without the receiver's libraries, say so in one line and return 2."""
    try:
        from pisync_receiver.commands.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LIBRARIES:
            raise
        text = "the receiver is not installed here: install PiSync's wheel with its extra 'receiver'"
        print(f"pisync-receiver: {error.name} is missing; {text}", file=sys.stderr)
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(main())
