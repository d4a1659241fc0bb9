"""Guests that test themselves: memory testers, cryptography with known answers, compilers that must agree.

Each does in a guest what has one right outcome, on every engine. What it prints is in pytest's report (-s shows it).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import packages
from conftest import PROMPT
from trapgate import VM, Machine, build_info, exits
from trapgate.config import CpuModel, Engine
from trapgate.images.apt import unpack
from trapgate.images.cpio import Archive

can_translate = pytest.mark.skipif(
    "translate" not in build_info()["engines"].split(), reason="this build has no translator"
)
#: The translator first, if there is one: what it comes to, the interpreter must come to as well.
ENGINES: list[Engine] = (
    ["translate", "interpret"] if "translate" in build_info()["engines"].split() else ["interpret"]
)

pytestmark = [pytest.mark.long, pytest.mark.boot, pytest.mark.network, pytest.mark.timeout(3600)]

#: Bounds what hangs, in seconds; nothing is expected to come near it.
HANG = 1800


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> packages.Packages:
    return packages.Packages(tmp_path_factory.mktemp("packages"))


class Shell:
    """The shell of a guest: commands that must succeed, each printed with its answer."""

    def __init__(self, vm: VM) -> None:
        self._console = vm.console
        self._console.expect(PROMPT, timeout=HANG)
        # As wide as any command: the shell would break the line that it echoes.
        self._console.command("stty columns 2000", PROMPT)

    def try_(self, command: str) -> tuple[int, str]:
        """Give a command's status and what it printed."""
        answer = self._console.command(f"{command}; echo status $?", PROMPT, timeout=HANG)
        printed, _, status = answer.rpartition("status ")
        print(f"# {command}\n{printed[:600]}{'...' if len(printed) > 600 else ''}", end="", flush=True)
        return int(status), printed

    def __call__(self, command: str) -> str:
        status, printed = self.try_(command)
        assert status == 0, f"{command} ended with {status}:\n{printed}"
        return printed


def same_on_all_engines(machine: Machine, work: Callable[[Shell], None]) -> None:
    """Have `work` done in a guest on each engine; at its end registers, memory and devices must be the same."""
    ends = {}
    for engine in ENGINES:
        print(f"\n==== {engine}, {machine.cpu}")
        with VM(machine.replace(engine=engine, clock="virtual")) as vm:
            work(Shell(vm))
            ends[engine] = (vm.icount, vm.digest(), vm.console.transcript)
        print(f"==== {engine}: {ends[engine][0]:,} instructions, {ends[engine][1]}")
    assert len(set(ends.values())) == 1, {engine: end[:2] for engine, end in ends.items()}


# ---- memtest86+


def memtest(debs: packages.Packages, binary: str) -> Machine:
    (package,) = debs.fetch("memtest86+", dependencies=False)
    (kernel,) = unpack(package, lambda name: name == f"/boot/memtest86+{binary}.bin", 1).values()
    return Machine(kernel=kernel, append="console=ttyS0,115200 nosmp")


@pytest.mark.parametrize(
    ("binary", "engine", "memory"),
    [
        pytest.param("x64", "translate", "64M", marks=can_translate),
        # Less memory where there is less speed; 32-bit code is the interpreter's.
        ("x64", "interpret", "16M"),
        ("ia32", "auto", "8M"),
    ],
)
def test_memtest_passes(debs: packages.Packages, binary: str, engine: Engine, memory: str) -> None:
    """One pass of Memtest86+ over all RAM; its fade test waits twice for 80 seconds."""
    machine = memtest(debs, binary).replace(engine=engine, memory=memory)
    with VM(machine) as vm:
        vm.console.expect(re.compile(r"Pass: +[1-9]\d* +Errors: *\d+ "), timeout=HANG)
        screens = vm.console.transcript
    # The serial console is written every two seconds only: short tests may not be seen. The fade test is the last.
    tests = dict(re.findall(r"#(\d+) +\[([^\]]+)\]", screens))
    for number, what in tests.items():
        print(f"test {number}: {what}")
    assert "10" in tests
    assert set(re.findall(r"Errors: *(\d+) ", screens)) == {"0"}


def test_memtest_tells_of_bits_that_flip(debs: packages.Packages) -> None:
    """Memory that does not keep what is written is found: no errors are told because there are none."""
    with VM(memtest(debs, "x64").replace(memory="64M")) as vm:
        vm.console.expect("Errors: 0")
        found = re.compile(r"Errors: *[1-9]")
        for round_ in range(1000):
            for address in range((8 << 20) + round_ * 8, 56 << 20, 0x1_1000):
                vm.mem[address] = vm.mem.u8(address) ^ 4
            if isinstance(vm.run(until=found, timeout=0.2), exits.Expected):
                break
        else:
            pytest.fail("flipped bits were not found")


# ---- OpenSSL

DIGESTS = {
    "md5": "md5",
    "sha1": "sha1",
    "sha224": "sha224",
    "sha256": "sha256",
    "sha384": "sha384",
    "sha512": "sha512",
    "sha512-256": "sha512_256",
    "sha3-256": "sha3_256",
    "sha3-512": "sha3_512",
    "blake2b512": "blake2b",
    "blake2s256": "blake2s",
    "ripemd160": "ripemd160",
    "sm3": "sm3",
}
#: Around the blocks and the lengths of padding of all the digests, and some that are long.
SIZES = (
    *(
        0,
        1,
        3,
        31,
        55,
        56,
        57,
        63,
        64,
        65,
        71,
        72,
        73,
        111,
        112,
        113,
        119,
        127,
        128,
        129,
        135,
        136,
        137,
        143,
        144,
    ),
    *(255, 256, 257, 1000, 4095, 4096, 4097, 65537, 1 << 20, (1 << 21) + 17),
)

NOISE = random.Random(12).randbytes(max(SIZES))

#: Cipher, key, IV, text, ciphertext: SP 800-38A, appendix F, first two blocks each; RFC 8439, section 2.4.2, in part.
BLOCKS = "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
KEY128 = "2b7e151628aed2a6abf7158809cf4f3c"
KEY256 = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
IV = "000102030405060708090a0b0c0d0e0f"
COUNTER = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"
CIPHERS = [
    ("aes-128-ecb", KEY128, "", "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"),
    ("aes-256-ecb", KEY256, "", "f3eed1bdb5d2a03c064b5a7e3db181f8591ccb10d410ed26dc5ba74a31362870"),
    ("aes-128-cbc", KEY128, IV, "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"),
    ("aes-256-cbc", KEY256, IV, "f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d"),
    ("aes-128-ctr", KEY128, COUNTER, "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"),
    ("aes-256-ctr", KEY256, COUNTER, "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"),
    ("aes-128-cfb", KEY128, IV, "3b3fd92eb72dad20333449f8e83cfb4ac8a64537a0b3a93fcde3cdad9f1ce58b"),
    ("aes-128-ofb", KEY128, IV, "3b3fd92eb72dad20333449f8e83cfb4a7789508d16918f03f53c52dac54ed825"),
]

#: RFC 8032, section 7.1, tests 2 and 3: secret key, message, signature.
ED25519 = [
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]

#: What OpenSSL is told that the processor does not have: it takes other code, with the same results. Bit 57 of the
#: first word is AES, 41 is SSSE3, 33 is PCLMULQDQ.
FEWER = {
    "as found": "",
    "no AES": "OPENSSL_ia32cap=~0x200000200000000",
    "no SSSE3": "OPENSSL_ia32cap=~0x220020200000000",
}


def openssl_files(debs: packages.Packages) -> Archive:
    root = Archive()
    for package in debs.fetch("openssl"):
        packages.add(root, package, lambda name: not name.startswith("/usr/share/"))
    for size in SIZES:
        root.file(f"/data/{size}", NOISE[:size])
    root.file("/data/blocks", bytes.fromhex(BLOCKS))
    for number, (key, message, signature) in enumerate(ED25519):
        # PKCS #8 around the key (RFC 8410, section 7).
        root.file(f"/data/ed{number}.der", bytes.fromhex("302e020100300506032b657004220420" + key))
        root.file(f"/data/ed{number}.message", bytes.fromhex(message))
        root.file(f"/data/ed{number}.signature", bytes.fromhex(signature))
    return root


def check_digests(run: Shell) -> None:
    names = " ".join(f"/data/{size}" for size in SIZES)
    for there, here in DIGESTS.items():
        if here not in hashlib.algorithms_available:
            continue
        for what in FEWER.values():
            lines = run(f"{what} openssl dgst -r -{there} {names}").splitlines()
            got = {int(line.split("/data/")[1]): line.split()[0] for line in lines}
            assert got == {size: hashlib.new(here, NOISE[:size]).hexdigest() for size in SIZES}, there
    for size in (0, 63, 64, 4097, 1 << 20):
        got_mac = run(f"openssl dgst -r -sha256 -hmac trapgate /data/{size}").split()[0]
        assert got_mac == hmac.new(b"trapgate", NOISE[:size], "sha256").hexdigest()


def check_key_derivation(run: Shell) -> None:
    salt = "-kdfopt pass:trapgate -kdfopt salt:NaCl"
    got = run(f"openssl kdf -keylen 40 -kdfopt digest:SHA512 {salt} -kdfopt iter:4000 PBKDF2")
    assert bytes.fromhex(got.replace(":", "")) == hashlib.pbkdf2_hmac(
        "sha512", b"trapgate", b"NaCl", 4000, 40
    )
    got = run(f"openssl kdf -keylen 40 {salt} -kdfopt n:1024 -kdfopt r:8 -kdfopt p:2 SCRYPT")
    assert bytes.fromhex(got.replace(":", "")) == hashlib.scrypt(
        b"trapgate", salt=b"NaCl", n=1024, r=8, p=2, dklen=40
    )


def check_ciphers(run: Shell) -> None:
    for cipher, key, iv, expected in CIPHERS:
        options = f"-{cipher} -K {key} {f'-iv {iv}' if iv else ''}"
        for what in FEWER.values():
            got = run(f"{what} openssl enc {options} -nopad -in /data/blocks | od -An -v -tx1")
            assert got.split() == re.findall("..", expected), cipher
    # Long texts: encrypted by one code, decrypted by another, all ciphertexts the same.
    size = max(SIZES)
    for cipher in (
        "aes-128-cbc",
        "aes-192-ecb",
        "aes-256-ctr",
        "aes-256-cfb",
        "camellia-256-cbc",
        "aria-128-ctr",
        "chacha20",
    ):
        key = {"aes-128-cbc": KEY128, "aria-128-ctr": KEY128, "aes-192-ecb": KEY256[:48]}.get(cipher, KEY256)
        options = f"-{cipher} -K {key}" + (f" -iv {COUNTER}" if "ecb" not in cipher else "")
        sums = set()
        for what in FEWER.values():
            run(f"{what} openssl enc {options} -in /data/{size} -out /tmp/sealed")
            sums.add(run("sha256sum < /tmp/sealed"))
            run(f"openssl enc -d {options} -in /tmp/sealed | cmp - /data/{size}")
        assert len(sums) == 1, cipher


def check_primes(run: Shell) -> None:
    for exponent, prime in ((61, True), (127, True), (128, False), (521, True), (1279, True), (1277, False)):
        says = run(f"openssl prime -hex {(1 << exponent) - 1:X}")
        assert ("is prime" in says) == prime, exponent
    product = ((1 << 521) - 1) * ((1 << 607) - 1)
    assert "is not prime" in run(f"openssl prime {product}")
    for bits in (256, 512, 1024):
        number = int(run(f"openssl prime -generate -bits {bits}"))
        assert number.bit_length() == bits
        # Fermat's test, by the host.
        assert all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7, 11))


def check_rsa(run: Shell) -> None:
    run("openssl genrsa -out /tmp/rsa.pem 2048 2>/dev/null; openssl rsa -in /tmp/rsa.pem -check -noout")
    run("openssl rsa -in /tmp/rsa.pem -pubout -out /tmp/rsa.pub 2>/dev/null")
    modulus = int(run("openssl rsa -in /tmp/rsa.pem -modulus -noout").strip().removeprefix("Modulus="), 16)
    # PKCS #1, checked by the host: RFC 8017, section 9.2.
    info = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(NOISE[:4097]).digest()
    padded = b"\0\1" + b"\xff" * (256 - 3 - len(info)) + b"\0" + info
    for what in FEWER.values():
        run(f"{what} openssl dgst -sha256 -sign /tmp/rsa.pem -out /tmp/signed /data/4097")
        signature = base64.b64decode(run("base64 /tmp/signed"))
        assert pow(int.from_bytes(signature, "big"), 65537, modulus) == int.from_bytes(padded, "big")
        assert "OK" in run("openssl dgst -sha256 -verify /tmp/rsa.pub -signature /tmp/signed /data/4097")
    assert run.try_("openssl dgst -sha256 -verify /tmp/rsa.pub -signature /tmp/signed /data/4096")[0] == 1
    run(
        "openssl pkeyutl -encrypt -pubin -inkey /tmp/rsa.pub -in /data/128 -pkeyopt rsa_padding_mode:oaep -out /tmp/c"
    )
    run(
        "openssl pkeyutl -decrypt -inkey /tmp/rsa.pem -in /tmp/c -pkeyopt rsa_padding_mode:oaep | cmp - /data/128"
    )


def check_curves(run: Shell) -> None:
    for curve in ("prime256v1", "secp384r1", "secp521r1", "secp256k1", "brainpoolP256r1", "sect283k1"):
        run(
            f"openssl ecparam -name {curve} -genkey -noout -out /tmp/ec.pem; openssl pkey -in /tmp/ec.pem -check -noout"
        )
        run("openssl pkey -in /tmp/ec.pem -pubout -out /tmp/ec.pub")
        run("openssl dgst -sha256 -sign /tmp/ec.pem -out /tmp/signed /data/4097")
        assert "OK" in run("openssl dgst -sha256 -verify /tmp/ec.pub -signature /tmp/signed /data/4097")
        assert run.try_("openssl dgst -sha256 -verify /tmp/ec.pub -signature /tmp/signed /data/4096")[0] == 1
    for number in range(len(ED25519)):
        name = f"/data/ed{number}"
        run(
            f"openssl pkeyutl -sign -rawin -inkey {name}.der -keyform DER -in {name}.message | cmp - {name}.signature"
        )
    for kind in ("x25519", "x448"):
        for who in "ab":
            run(f"openssl genpkey -algorithm {kind} -out /tmp/{who}")
            run(f"openssl pkey -in /tmp/{who} -pubout -out /tmp/{who}.pub")
        run("openssl pkeyutl -derive -inkey /tmp/a -peerkey /tmp/b.pub -out /tmp/ab")
        run("openssl pkeyutl -derive -inkey /tmp/b -peerkey /tmp/a.pub | cmp - /tmp/ab")


def check_all(run: Shell) -> None:
    run("openssl version -a")
    check_digests(run)
    check_key_derivation(run)
    check_ciphers(run)
    check_primes(run)
    check_rsa(run)
    check_curves(run)


@pytest.mark.parametrize("cpu", ["x86-64-v2", "x86-64-v3"])
def test_openssl_gives_the_known_answers(debs: packages.Packages, debian: Machine, cpu: CpuModel) -> None:
    same_on_all_engines(packages.with_files(debian, openssl_files(debs)).replace(cpu=cpu), check_all)


# ---- GCC


def program(seed: int, functions: int) -> str:
    """Give a C program that prints what its functions come to: integers, floating point, structures, branches.

    Nothing in it is undefined: integers wrap since they are unsigned, shifts are masked, divisors odd, and floating
    point is added, multiplied, divided and rooted only, which IEEE 754 defines to the bit.
    """
    noise = random.Random(seed)
    lines = [
        "#include <math.h>",
        "#include <stdint.h>",
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "#include <string.h>",
        "struct item { uint64_t key; uint32_t part[3]; double weight; uint8_t tag; };",
        "static int by_key(const void *a, const void *b) {",
        "    const struct item *x = a, *y = b;",
        "    return x->key < y->key ? -1 : x->key > y->key;",
        "}",
    ]
    for number in range(functions):
        callee = f"f{noise.randrange(number)}(x ^ y, n / 2)" if number else "y"
        a, b, c = (noise.getrandbits(64) for _ in range(3))
        shift, turn = noise.randrange(1, 63), noise.randrange(2, 30)
        sign = noise.choice(("+", "-", "^", "|", "&"))
        cases = "".join(
            f"        case {case}: x {noise.choice(('+', '-', '^'))}= y * {noise.getrandbits(31)}u; "
            f"{noise.choice(('break;', '/* fall through */'))}\n"
            for case in range(noise.randrange(3, 12))
        )
        lines.append(
            f"""static uint64_t f{number}(uint64_t x, unsigned n) {{
    uint64_t y = {a:#x}ull, table[{turn}];
    double d = (double)(x >> 12) / {noise.randrange(3, 99)}.0;
    float e = (float)(int32_t)x * {noise.random():.6f}f;
    for (unsigned i = 0; i < {turn}; i++) table[i] = x * (i + {b:#x}ull) {sign} (y >> (i & 31));
    for (unsigned i = 0; i < n; i++) {{
        switch ((x >> {shift}) % 13) {{
{cases}        default: y = (y << {shift}) | (y >> {64 - shift}); x += table[(y + i) % {turn}];
        }}
        x = x / ((y & 0xffff) | 1) + x % ((uint32_t)y | 1) * {c:#x}ull;
        d = sqrt(d * d + (double)(uint32_t)x) * 0.75; e = e / 3.0f + (float)(int16_t)y;
        if (((int64_t)x >> 7 & 3) == {noise.randrange(4)}) y ^= (uint64_t)(int64_t)(int32_t)x;
    }}
    if (n > 1) x ^= {callee};
    return x + (uint64_t)d + (uint64_t)(int64_t)e + (y ^ table[x % {turn}]);
}}"""
        )
    calls = ", ".join(f"f{number}" for number in range(functions))
    lines.append(
        f"""static uint64_t (*const all[])(uint64_t, unsigned) = {{ {calls} }};
int main(void) {{
    enum {{ COUNT = {functions} }};
    struct item *items = calloc(COUNT, sizeof *items);
    if (!items) return 2;
    for (unsigned i = 0; i < COUNT; i++) {{
        items[i].key = all[i](i * 0x9e3779b97f4a7c15ull, 16 + i % 7);
        items[i].weight = (double)(items[i].key >> 11) / 3.0;
        items[i].tag = (uint8_t)i;
        memcpy(items[i].part, &items[i].key, sizeof items[i].key);
    }}
    qsort(items, COUNT, sizeof *items, by_key);
    for (unsigned i = 0; i < COUNT; i++)
        printf("%u %016llx %08x %.17g\\n", items[i].tag, (unsigned long long)items[i].key, items[i].part[1],
               items[i].weight);
    free(items);
    return 0;
}}"""
    )
    return "\n".join(lines) + "\n"


def not_for_building(name: str) -> bool:
    """Say whether a file of the compiler's packages is of no use to a C program, and large."""
    return (
        name.startswith("/usr/share/")
        or re.search(r"/lto1|/lto-dump|/lib[a-z]+san|gprofng", name) is not None
    )


def test_gcc_builds_what_it_builds_on_the_host(
    debs: packages.Packages, debian: Machine, tmp_path: Path
) -> None:
    """Debian's compiler, run by a guest and by the host, gives the same object files; the programs print the same."""
    root, here = Archive(), tmp_path / "root"
    for package in debs.fetch("gcc-12", "libc6-dev"):
        packages.add(root, package, lambda name: not not_for_building(name))
        subprocess.run(["dpkg-deb", "-x", package, here], check=True)
    text = program(seed=7, functions=24)
    root.file("/root/p.c", text)
    assembly, unit = (hashlib.sha256(data).hexdigest() for data in on_the_host(here, text, tmp_path))
    expected = None
    if compiler := shutil.which("cc"):
        subprocess.run([compiler, "-O1", "-o", "p", "p.c", "-lm"], cwd=tmp_path, check=True)
        expected = subprocess.run([tmp_path / "p"], capture_output=True, text=True, check=True).stdout

    def build(run: Shell) -> None:
        run("gcc-12 --version; uname -r; free -m; wc -l p.c")
        run("gcc-12 -O2 -Wall -Werror -S p.c && as -o p.o p.s && gcc-12 -o p p.o -lm && ls -l p.*")
        assert run("sha256sum p.s p.o").split()[::2] == [assembly, unit]
        run("gcc-12 -O2 -c -pipe p.c -o again.o && cmp p.o again.o")
        run("gcc-12 -O0 p.c -o plain -lm && gcc-12 -O3 -funroll-loops -static p.c -o static -lm")
        assert run("./p") == expected or expected is None
        run("./p > 1; ./plain > 2; ./static > 3; cmp 1 2 && cmp 1 3")

    same_on_all_engines(packages.with_files(debian, root).replace(memory="1G"), build)


def on_the_host(root: Path, text: str, folder: Path) -> tuple[bytes, bytes]:
    """Give the assembly and the object file that the guest's compiler makes of the text when the host runs it.

    Its programs are run by the loader and with the libraries from the same packages, below `root`.
    """
    (folder / "p.c").write_text(text)
    libraries = ":".join(str(root / name / "x86_64-linux-gnu") for name in ("lib", "usr/lib"))
    start: list[str | Path] = [
        root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        "--library-path",
        libraries,
    ]
    gcc = root / "usr/lib/gcc/x86_64-linux-gnu/12"
    headers = [gcc / "include", root / "usr/include/x86_64-linux-gnu", root / "usr/include"]
    includes: list[str | Path] = [option for folder in headers for option in ("-isystem", folder)]
    options = "-quiet -mtune=generic -march=x86-64 -O2 -fasynchronous-unwind-tables".split()
    compiler = [*start, gcc / "cc1", "-nostdinc", *includes, *options, "p.c", "-o", "p.s"]
    assembler = [*start, root / "usr/bin/x86_64-linux-gnu-as", "--64", "-o", "p.o", "p.s"]
    for command in (compiler, assembler):
        subprocess.run(command, cwd=folder, check=True)
    return (folder / "p.s").read_bytes(), (folder / "p.o").read_bytes()
