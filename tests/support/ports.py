"""Ports for servers that tests start."""

import random
import socket

PORTS = range(20000, 32768)
"""Below those that the kernel gives to outgoing connections: none of these takes a port that was
found free before its server listens, which may be seconds later."""
CHOICE = random.SystemRandom()
"""Whatever seeds a test or a library sets, two processes do not choose the same."""


def free_port() -> int:
    """A port that nothing listens on."""
    while True:
        port = CHOICE.choice(PORTS)
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
