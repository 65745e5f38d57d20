from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    folder = tmp_path / "cluster"
    folder.mkdir()
    return Cluster(folder)
