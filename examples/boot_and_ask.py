"""Boot Debian, ask it a few questions, and switch it off."""

from __future__ import annotations

from trapgate import VM, Machine, exits

PROMPT = "root@debian:~# "


def main() -> None:
    machine = Machine.from_image("debian-12", memory="256M", append="quiet")
    with VM(machine) as vm:
        vm.console.expect(PROMPT, timeout=300)
        for question in ("uname -a", "cat /proc/cpuinfo | grep -m1 'model name'", "uptime"):
            print(f"{question}\n{vm.console.command(question, PROMPT)}")
        vm.console.sendline("poweroff")
        result = vm.run(timeout=60)
        assert isinstance(result, exits.Shutdown), result
        print(f"{result.icount:,} instructions in {result.now:.1f} seconds")


if __name__ == "__main__":
    main()
