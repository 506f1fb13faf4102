"""Control messages that a command-line client receives from the head."""

from __future__ import annotations

from typing import Any, TypeAlias

from tarragon_hpc.wire.common import Message


class StatusReply(Message, frozen=True):
    """The run as `tarragon status --json` prints it."""

    status: dict[str, Any]


class Done(Message, frozen=True):
    """The request was carried out."""


class Error(Message, frozen=True):
    """The request was refused, and why."""

    message: str


ToClient: TypeAlias = StatusReply | Done | Error
