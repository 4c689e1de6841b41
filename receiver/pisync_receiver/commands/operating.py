"""Running a receiver and its database: serve, worker, backup, copy, migrate, retain, config."""

import asyncio
from pathlib import Path
from typing import Final

from pisync_common.settings import path
from pisync_common.times import now_ms
from pisync_receiver import config
from pisync_receiver.commands.client import become_owner, check_exists
from pisync_receiver.commands.console import table
from pisync_receiver.commands.context import JSON, Context, arg, checked, command
from pisync_receiver.errors import NotFound, ReceiverError, WrongUsage
from pisync_receiver.store import copy as copying
from pisync_receiver.store import opening
from pisync_receiver.store.address import PostgresUrl, address

_LEAST_AGE_S: Final = 86_400
"""The least that the API takes, which a person knows as 1d."""


@command(
    "serve --port 8080 --database-url sqlite:////var/lib/pisync-receiver/receiver.db",
    settings=config.SERVING,
)
def serve(context: Context) -> None:
    """Store what devices send and answer questions about it, until it is stopped."""
    from pisync_receiver.server import serve as serve_until_stopped  # uvicorn, which no other command needs

    serve_until_stopped(context.settings, out=context.out, err=context.err)


@command(
    "worker --amqp-url amqp://rabbitmq.example/",
    arg("--once", action="store_true", help="publish everything stored, then stop"),
    arg(
        "--from",
        dest="start_from",
        metavar="ID",
        help="publish from this event on, whatever was published before; 1 is the first, `now` skips all stored events",
    ),
    settings=(config.DATABASE, config.LOG_LEVEL, *config.PUBLISHING),
)
def worker(context: Context) -> None:
    """Publish stored events to RabbitMQ; needs PostgreSQL."""
    from pisync_receiver.worker.run import work  # psycopg, which only some have

    work(context.arguments, context.environ, err=context.err)


@command(
    "backup /srv/backup/receiver-monday.db",
    arg("file", metavar="FILE", help="the file to make; it must not exist yet"),
    settings=(config.DATABASE,),
)
def backup(context: Context) -> None:
    """Write a consistent copy of the database, also while it serves."""
    file = checked("FILE", path, context.arguments.file)
    if file.exists():
        raise ReceiverError(f"{file} exists already and was left as it is; name a new file")
    check_exists(context.settings)
    opening.backup(context.settings[config.DATABASE], file)
    context.result(f"{file}: {file.stat().st_size:,} bytes")


@command(
    "copy --from sqlite:////var/lib/pisync-receiver/receiver.db --to postgresql://pisync@db.example/pisync",
    arg("--from", dest="source", required=True, metavar="URL", help="the SQLite database, sqlite:///…"),
    arg("--to", dest="target", required=True, metavar="URL", help="an empty one, postgresql://…"),
    settings=(),
)
def copy(context: Context) -> None:
    """Move an embedded receiver to PostgreSQL; stop `serve` first, start it with the new URL afterwards."""
    source = checked("--from", address, context.arguments.source)
    target = checked("--to", address, context.arguments.target)
    if not isinstance(source, Path) or not isinstance(target, PostgresUrl):
        raise WrongUsage("copying goes --from sqlite:///… --to postgresql://…; nothing else is offered")
    if not source.is_file():
        raise NotFound(f"there is no database {source}; nothing was copied")
    done = asyncio.run(copying.copy(source, target, now_ms=now_ms, progress=context.remark))
    rows = [{"table": name, "rows": f"{count:,}", "compared": "the same"} for name, count in done.rows.items()]
    context.out.write(table(rows, ("table", "rows", "compared")))
    if not done.before:
        context.remark(f"All of it is in {target}. Start the receivers with it: --database-url URL; keep {source}.")
    else:
        context.remark(f"All of it was in {target} already; nothing was changed.")


@command(
    "migrate",
    settings=(config.DATABASE,),
)
def migrate(context: Context) -> None:
    """Bring the database's schema up to this program; back up first, stop `serve` first."""
    check_exists(context.settings)
    become_owner(context.settings[config.DATABASE])
    words = "Bringing the schema up: it can take minutes with millions of events. Interrupted, it changes nothing."
    applied = asyncio.run(opening.migrate(context.settings[config.DATABASE], begin=lambda: context.remark(words)))
    context.result(f"applied: {', '.join(applied)}" if applied else "the schema is this program's own; nothing to do")


@command(
    "retain --older-than 800d --dry-run",
    arg("--older-than", required=True, metavar="TIME", help="delete what arrived longer ago: 400d; at least 1d"),
    arg("--type", metavar="TYPE", help="only events of this type, such as video.watched (default: everything)"),
    arg("--dry-run", action="store_true", help="delete nothing; tell how much there is"),
)
def retain(context: Context) -> None:
    """Delete events and sync events that arrived long ago, in bounded batches."""
    arguments = context.arguments
    older_than_s = context.seconds("--older-than", arguments.older_than)
    if older_than_s < _LEAST_AGE_S:
        raise WrongUsage(f"--older-than {arguments.older_than!r}: too short; the shortest is 1d; nothing was deleted")
    wanted = {"older_than_s": older_than_s, "type": arguments.type, "dry_run": arguments.dry_run}
    events = sync_events = 0
    more = True  # until no batch is left; a dry run counts everything at once
    with context.api() as api:
        while more:
            done = api.call("POST", "/api/retention", wanted)
            events += done["events"]
            sync_events += done["sync_events"]
            more, wanted["after"] = done["more"], done["after"]
    did = "would be deleted" if arguments.dry_run else "deleted"
    context.result(f"{did}: {events:,} events and {sync_events:,} sync events")
    if done["by_type"]:
        rows = [{"type": name, "events": f"{count:,}"} for name, count in done["by_type"].items()]
        context.out.write(table(rows, ("type", "events")))


@command(
    "config --json",
    JSON,
    settings=config.SETTINGS,
)
def show_config(context: Context) -> None:
    """Show each setting, its value and where it came from, secrets masked."""
    context.rows([row._asdict() for row in context.settings.describe()], ("name", "value", "source"))
