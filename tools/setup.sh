# Sourced by ./check and ./boot: finds Python and Rust, installs the few Debian packages that are missing (as
# root) or names them, and makes a private virtual environment in .venv. Nothing outside the checkout is
# changed but by apt. Sets: python, venv.

# What must be there, and the Debian package that brings it. This is the only list.
need_packages() {
    command -v cc >/dev/null || echo gcc libc6-dev
    command -v dpkg-deb >/dev/null || echo dpkg
    command -v cpio >/dev/null || echo cpio
    "$python" -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
}

die() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in python3.11 python3 python3.12 python3.13 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            return
        fi
    done
    die "Python 3.11 or newer is needed (Debian 12: apt-get install python3)"
}

check_rust() {
    [ -d "${CARGO_HOME:-$HOME/.cargo}/bin" ] && PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    command -v cargo >/dev/null || die "a Rust toolchain is needed; the README says how to get it"
    local version
    version=$(rustc --version | sed -n 's/^rustc 1\.\([0-9]*\)\..*/\1/p')
    [ "${version:-0}" -ge 88 ] || die "Rust 1.88 or newer is needed, this is $(rustc --version); the README says how to get it"
}

install_packages() {
    local missing
    missing=$(need_packages | tr '\n' ' ')
    [ -z "${missing// /}" ] && return
    if [ "$(id -u)" != 0 ]; then
        die "these Debian packages are missing; run: sudo apt-get install ${missing% }"
    fi
    apt-get update -q
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
}

make_venv() {
    venv=$PWD/.venv
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
}

find_python
check_rust
install_packages
make_venv
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
export PIP_DISABLE_PIP_VERSION_CHECK=1
