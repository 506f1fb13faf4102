from __future__ import annotations

import io

from rich.console import Console

from tarragon_hpc.generate.outputs import Outcome
from tarragon_hpc.generate.report import Tally, closing_line, contributions, progress_bar


def usage(prompt, completion):
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def printed(thing):
    console = Console(width=100, file=io.StringIO())
    console.print(thing)
    return console.file.getvalue()


def test_tally_counts_tokens_and_remembers_the_first_problem():
    tally = Tally()
    for outcome in (
        Outcome("a", 200, usage(5, 10)),
        Outcome("b", 400, {"error": {"message": "bad seed"}}),
        Outcome("c", 500, "oops"),
        Outcome("d", 200, usage(1, 20)),
        Outcome("e", None, problem="cut"),
    ):
        tally.add(outcome)
    assert (tally.done, tally.refused, tally.failed) == (5, 1, 2)
    assert (tally.prompt_tokens, tally.tokens) == (6, 30)
    assert tally.problem == "b: HTTP 400: bad seed"


def test_closing_line():
    tally = Tally(done=3, prompt_tokens=9, tokens=100)
    line = "3 requests, 9 prompt tokens, 100 tokens in 2.0 s: 50 tokens/s"
    assert closing_line(tally, 2.0) == line
    tally.failed, tally.refused, tally.problem = 1, 1, "b: HTTP 400: no"
    assert closing_line(tally, 2.0) == (
        f"{line}; 1 refused; 1 failed (run again to retry); the first: b: HTTP 400: no"
    )


def test_contributions_name_every_worker_and_its_work():
    workers = [
        {"id": "aw0", "role": "aw", "experts": [], "stats": {"tokens": 64.0, "sequences": 2.0}},
        {"id": "ew0", "role": "ew", "experts": [0, 1], "stats": {"rows": 512.0, "batches": 40.0}},
        {"id": "ew1", "role": "ew", "experts": [2], "stats": {}},
    ]
    lines = printed(contributions({"workers": workers})).splitlines()
    assert any(line.split() == ["aw0", "2", "sequences,", "64", "tokens"] for line in lines)
    assert any("ew0" in line and "512 rows, 40 batches" in line for line in lines)
    assert any(line.split() == ["ew1", "1", "-"] for line in lines)


def test_progress_shows_speed_and_count():
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    with progress_bar(console) as progress:
        bar = progress.add_task("generating", total=4)
        progress.update(bar, advance=2, tokens=100)
    text = console.file.getvalue()
    assert "generating" in text
    assert "2/4" in text
    assert "tok/s" in text
