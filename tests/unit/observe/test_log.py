"""Log lines carry the process; repeated verdicts are logged once."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

from tarragon_hpc.observe.log import ChangeLogger

SCRIPT = """
import logging
from tarragon_hpc.observe.log import configure
configure("old")
configure("aw0.100%")
logging.getLogger("tarragon_hpc.attention.engine").info("built in %d s", 3)
logging.getLogger("other").info("hidden")
logging.getLogger("other").warning("shown")
"""


def test_lines_name_time_process_level_and_part():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    first, second = done.stderr.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}Z aw0\.100% INFO attention\.engine: built in 3 s",
        first,
    )
    assert second.endswith("aw0.100% WARNING other: shown")


def test_a_verdict_is_logged_when_it_changes(caplog):
    changes = ChangeLogger(logging.getLogger("verdicts"))
    with caplog.at_level(logging.INFO):
        said = [
            changes.log_if_changed("ew0", "healthy"),
            changes.log_if_changed("ew0", "healthy"),
            changes.log_if_changed("ew1", "healthy"),
            changes.log_if_changed("ew0", "silent for 1 s", logging.WARNING),
        ]
        changes.forget("ew1")
        said.append(changes.log_if_changed("ew1", "healthy"))
    assert said == [True, False, True, True, True]
    assert caplog.messages == [
        "ew0: healthy",
        "ew1: healthy",
        "ew0: silent for 1 s",
        "ew1: healthy",
    ]
