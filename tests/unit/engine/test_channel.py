"""Messages between ranks arrive whole or not at all."""

from __future__ import annotations

import socket

from tandem.engine.channel import Channel
from tandem.engine.step import Step
from tandem.kv.paged import Chunk


def test_steps_arrive_as_they_were_sent() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    steps = [Step(tokens=[1, 2], chunks=[Chunk(blocks=(3, 4), start=0, count=2, prompt=2)], rows=[1]), Step([], [], [])]
    for step in steps:
        ours.send(step)
    received = [theirs.receive(Step) for _ in steps]
    assert received == [Step([1, 2], [Chunk(blocks=[3, 4], start=0, count=2, prompt=2)], [1]), steps[1]]
    ours.close()
    assert theirs.receive(Step) is None
    theirs.close()


def test_a_message_that_breaks_off_is_none() -> None:
    for sent in (b"\x00\x00", b"\x00\x00\x00\x09\x83"):
        ours, theirs = socket.socketpair()
        ours.sendall(sent)
        ours.close()
        channel = Channel(theirs)
        assert channel.receive(Step) is None
        channel.close()


def test_unread_messages_of_the_other_end_do_not_matter() -> None:
    ours, theirs = (Channel(end) for end in socket.socketpair())
    theirs.send(Step([], [], []))
    ours.close()
    assert theirs.receive(Step) is None
    theirs.close()
