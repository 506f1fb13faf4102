"""Who may join, decided without any I/O."""

from __future__ import annotations

from dataclasses import dataclass

from tarragon_hpc.transport.admission import Admission


@dataclass(eq=False)
class End:
    peer: str
    peer_incarnation: int
    lost: str | None = None


def test_only_the_right_door_opens():
    admission = Admission("ew0", 2)
    assert admission.refusal("aw0", 1, "ew0", 2) is None
    assert admission.refusal("aw0", 1, "ew0", 1) == "this is ew0.2, not ew0.1"
    assert admission.refusal("aw0", 1, "ew1", 2) == "this is ew0.2, not ew1.2"


def test_newer_incarnations_cut_off_older_ones_and_never_the_other_way_round():
    admission = Admission("ew0", 1)
    first, twin, other = End("aw0", 1), End("aw0", 1), End("aw1", 1)
    assert admission.admit(first) == []
    assert admission.admit(twin) == []
    assert admission.admit(other) == []
    gone, newer = End("aw0", 2, "gone"), End("aw0", 3)
    assert admission.admit(gone) == [first, twin]
    assert admission.admit(newer) == []  # the gone one needs no cutting
    assert admission.refusal("aw0", 2, "ew0", 1) == "aw0.2 was replaced by aw0.3"
    assert admission.refusal("aw0", 3, "ew0", 1) is None
    assert admission.refusal("aw1", 1, "ew0", 1) is None
