"""What the power tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ext4 import Ext4Disk, ext4_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Ext4Disk]:
    """An empty disk whose power can be cut, where root may mount one."""
    with ext4_disk(tmp_path) as made:
        yield made
