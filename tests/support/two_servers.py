"""Two PostgreSQL servers, of which the one keeps parts of its devices at the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import migrate
from tests.support.commit_proxy import CommitProxy
from tests.support.postgres import run
from tests.support.postgres_cluster import Cluster, cluster

_MOVING: Final = Path(__file__).parents[2] / "receiver/deploy/postgresql/move-part.sql"


@dataclass(frozen=True, kw_only=True)
class TwoServers:
    """They run, and the one reaches the other over `way`."""

    near: Cluster
    far: Cluster
    way: CommitProxy

    def create(self, name: str) -> tuple[str, str]:
        """A database on each; the near one knows the other as its server `north`, and how a part is moved there."""
        here, there = self.near.create(name), self.far.create(name)
        for url in (here, there):
            migrate(PostgresUrl(conninfo=url))
        run(
            here,
            "CREATE EXTENSION postgres_fdw; "
            f"CREATE SERVER north FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{self.way.port}', "
            f"dbname '{name}', connect_timeout '5', batch_size '1000', fetch_size '1000'); "
            "CREATE USER MAPPING FOR CURRENT_USER SERVER north OPTIONS (user 'pisync')",
        )
        run(here, _MOVING.read_text())
        return here, there

    def move(self, here: str, part: int) -> list[Any]:
        """Move a part to the far server; which tables, with how many rows."""
        return run(here, f"SELECT * FROM move_part({part}, 'north')")


@contextmanager
def two_servers() -> Iterator[TwoServers]:
    with cluster() as near, cluster() as far, CommitProxy(far.port) as way:
        yield TwoServers(near=near, far=far, way=way)
