"""What a work completion means. Pure; the numbers are those of enum ibv_wc_status (verbs.h)."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["ok", "unreachable", "flushed", "access", "not ready", "broken"]

# Status of a failure → (name, kind). The path failed: retries are used up, or this end's port is
# down, which rxe calls LOC_QP_OP_ERR.
_STATUS: dict[int, tuple[str, Kind]] = {
    1: ("LOC_LEN_ERR", "broken"),
    2: ("LOC_QP_OP_ERR", "unreachable"),
    3: ("LOC_EEC_OP_ERR", "broken"),
    4: ("LOC_PROT_ERR", "broken"),
    5: ("WR_FLUSH_ERR", "flushed"),
    6: ("MW_BIND_ERR", "broken"),
    7: ("BAD_RESP_ERR", "broken"),
    8: ("LOC_ACCESS_ERR", "broken"),
    9: ("REM_INV_REQ_ERR", "access"),
    10: ("REM_ACCESS_ERR", "access"),
    11: ("REM_OP_ERR", "broken"),
    12: ("RETRY_EXC_ERR", "unreachable"),
    13: ("RNR_RETRY_EXC_ERR", "not ready"),
    14: ("LOC_RDD_VIOL_ERR", "broken"),
    15: ("REM_INV_RD_REQ_ERR", "broken"),
    16: ("REM_ABORT_ERR", "broken"),
    17: ("INV_EECN_ERR", "broken"),
    18: ("INV_EEC_STATE_ERR", "broken"),
    19: ("FATAL_ERR", "broken"),
    20: ("RESP_TIMEOUT_ERR", "unreachable"),
    21: ("GENERAL_ERR", "broken"),
}

_WORDS = {
    "unreachable": "unreachable",
    "flushed": "the queue pair had failed before",
    "access": "the peer's memory may not be written",
    "not ready": "the peer was not ready to receive",
    "broken": "the queue pair failed",
}


class Completion(NamedTuple):
    """One work request is over.

    qp_num: of the queue pair it was posted to; wr_id: that it was posted with
    kind: what that means for the peer; text: the same in words, for a reason of loss
    """

    qp_num: int
    wr_id: int
    kind: Kind
    text: str


def completion(qp_num: int, wr_id: int, status: int, vendor_error: int = 0) -> Completion:
    """Of a work completion's fields; a status unknown here is a failure too."""
    if status == 0:
        return Completion(qp_num, wr_id, "ok", "done")
    name, kind = _STATUS.get(status, (f"status {status}", "broken"))
    code = f", vendor error {vendor_error:#x}" if vendor_error else ""
    return Completion(qp_num, wr_id, kind, f"{_WORDS[kind]} ({name}{code})")


def first_failure(completions: list[Completion]) -> Completion:
    """The one that tells why, of several with a failure among them; what was posted behind it was
    only flushed.
    """
    failures = [c for c in completions if c.kind != "ok"]
    return next((c for c in failures if c.kind != "flushed"), failures[0])
