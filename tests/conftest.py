"""What tests share: images, small guests of our own, and a Debian that is booted once."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from trapgate import VM, Machine

# Whoever runs the tests may ignore signals, as nohup and a shell's background do; the commands that are tested would
# inherit that, and tests that raise one would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)

PROMPT = "root@debian:~# "

# A loaded host is no failure, and every run tries the same examples.
settings.register_profile("trapgate", deadline=None, derandomize=True, database=None)
settings.load_profile("trapgate")


@pytest.fixture(scope="session")
def debian() -> Machine:
    """Debian 12 from the host's mirror, or from the cache."""
    return Machine.from_image("debian-12", memory="256M")


@pytest.fixture(scope="module")
def booted(debian: Machine) -> Iterator[VM]:
    """Give a Debian at its prompt, shared by the tests of a module: they leave it at its prompt."""
    with VM(debian) as vm:
        vm.console.expect(PROMPT, timeout=240)
        yield vm
