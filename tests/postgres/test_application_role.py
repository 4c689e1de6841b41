"""The role that the deployment files make for the receivers: it owns its database and is no superuser."""

import os
import subprocess
from pathlib import Path
from typing import Final

import psycopg

from tests.postgres.cluster import USER, cluster, needs_cluster, programs
from tests.support.devices import MadeUpDevice
from tests.support.processes import ReceiverProcess

pytestmark = needs_cluster

ADMIN: Final = "administrator"
SCRIPT: Final = Path(__file__).parents[2] / "receiver/deploy/postgres/role.sh"


def test_receiver_works_as_the_owner_of_its_database_without_superuser_rights(tmp_path: Path) -> None:
    with cluster() as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {ADMIN} SUPERUSER LOGIN".encode())
        with psycopg.connect(server.url.replace(USER, ADMIN), autocommit=True) as connection:
            connection.execute(f"ALTER ROLE {USER} RENAME TO first".encode())  # the script makes a role of this name
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port), "POSTGRES_USER": ADMIN}
        secret = {"DATABASE_PASSWORD": "it's '; one"}
        path = f"{programs()}:{os.environ['PATH']}"
        subprocess.run(["sh", SCRIPT], env=os.environ | place | secret | {"PATH": path}, check=True)
        url = f"postgresql://pisync@127.0.0.1:{server.port}/pisync"
        with psycopg.connect(url) as connection:
            found = connection.execute(
                "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
        assert found == (False, False, False, False)
        with (
            ReceiverProcess(tmp_path / "receiver", database_url=url) as receiver,
            MadeUpDevice(receiver.url, receiver.enrollment_code()) as device,
        ):
            assert device.post_batch(device.events(3)).json()["watermark"] == 3
        receiver.command("migrate")
