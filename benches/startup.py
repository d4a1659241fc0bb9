"""What it costs to start: `import trapgate` above a bare interpreter, and a boot of Debian to its prompt.

Run with the interpreter that trapgate is installed for: `python benches/startup.py`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(code: str, runs: int = 20) -> float:
    """Give the median time of a new interpreter that runs `code`."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the figures."""
    bare = seconds("pass")
    for what in ("import trapgate", "from trapgate import VM, Machine", "import trapgate.cli.boot"):
        print(f"{what:<36}{(seconds(what) - bare) * 1000:6.1f} ms")

    from trapgate import VM, Machine

    machine = Machine.from_image("debian-12", memory="256M")
    start = time.perf_counter()
    with VM(machine) as vm:
        vm.console.expect("root@debian:~# ", timeout=600)
        taken = time.perf_counter() - start
        print(
            f"{'debian-12 to its prompt':<36}{taken:6.1f} s, {vm.icount / taken / 1e6:.0f} million instructions/s"
        )


if __name__ == "__main__":
    main()
