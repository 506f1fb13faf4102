"""Both stores: what holds for the specification holds for the native one."""

from __future__ import annotations

import pytest

from tarragon_hpc import native
from tarragon_hpc.checkpoint.plain_store import PlainStore


@pytest.fixture(params=["plain", pytest.param("native", marks=pytest.mark.native)])
def make_store(request):
    return PlainStore if request.param == "plain" else native.module.KvStore
