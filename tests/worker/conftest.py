"""A separate database and queue for each test."""

from collections.abc import Iterator

import pytest

from tests.worker.broker import Queue, queue_of_its_own
from tests.worker.database import WorkerDatabase, copy_of, database_with_schema


@pytest.fixture(scope="session")
def template() -> Iterator[str]:
    with database_with_schema() as name:
        yield name


@pytest.fixture
def database(template: str) -> Iterator[WorkerDatabase]:
    with copy_of(template) as database:
        yield database


@pytest.fixture
def queue() -> Iterator[Queue]:
    with queue_of_its_own() as queue:
        yield queue
