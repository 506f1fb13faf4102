import signal

import pytest

from tarragon_hpc.attention.mailbox import Interrupted, Mailbox
from tarragon_hpc.wire.to_worker import Abort, Drain, Shutdown, Welcome


@pytest.fixture
def mailbox():
    mailbox = Mailbox()
    before = signal.signal(signal.SIGTERM, lambda *_: mailbox.leave())
    yield mailbox
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("message", [Drain("enough"), Shutdown("enough")])
def test_a_wish_to_leave_interrupts_the_start(message, mailbox):
    with pytest.raises(Interrupted):
        mailbox.put(message)
    assert mailbox.messages.get_nowait() == message


def test_sigterm_interrupts_the_start(mailbox):
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("message", [Drain("enough"), Shutdown("enough"), Abort(["r"])])
def test_messages_wait_for_the_loop_once_it_serves(message, mailbox):
    mailbox.starting = False
    mailbox.put(message)
    assert mailbox.messages.get_nowait() == message


def test_sigterm_is_a_drain_once_it_serves(mailbox):
    mailbox.starting = False
    signal.raise_signal(signal.SIGTERM)
    assert mailbox.messages.get_nowait() == Drain("SIGTERM")


def test_other_messages_do_not_disturb_the_start(mailbox):
    mailbox.put(Abort(["r"]))
    mailbox.put(Welcome(epoch=0))
    mailbox.wait_for_welcome()
    assert mailbox.messages.empty()
