"""Count the system calls that one command in the guest makes, with a hook on the kernel's entry point."""

from __future__ import annotations

from collections import Counter

from trapgate import VM, Machine
from trapgate.hooks import ExecEvent

PROMPT = "root@debian:~# "
NAMES = {
    0: "read",
    1: "write",
    2: "open",
    3: "close",
    9: "mmap",
    12: "brk",
    57: "fork",
    59: "execve",
    60: "exit",
}


def main() -> None:
    with VM(Machine.from_image("debian-12", memory="256M", append="quiet")) as vm:
        vm.console.expect(PROMPT, timeout=300)
        calls: Counter[int] = Counter()
        # SYSCALL goes to the address in IA32_LSTAR, with the number of the call in RAX.
        with vm.on.exec(vm.regs.lstar) as hook:

            def count(_event: ExecEvent) -> None:
                calls[vm.regs.eax] += 1

            hook.callback = count
            vm.console.command("ls -l / > /dev/null", PROMPT)
    for number, times in calls.most_common(10):
        print(f"{times:6} {NAMES.get(number, number)}")


if __name__ == "__main__":
    main()
