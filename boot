#!/usr/bin/env bash
# Does its own set-up, builds trapgate and boots Debian 12 to a shell prompt in this terminal.
# Arguments go to `trapgate boot`: `./boot --memory 256M`.
set -euo pipefail
cd "$(dirname "$0")"
. tools/setup.sh

stamp=$venv/.trapgate-built
if [ ! -e "$stamp" ] || [ -n "$(find rust python pyproject.toml Cargo.toml Cargo.lock \
        -name '*.so' -prune -o -name __pycache__ -prune -o -type f -newer "$stamp" -print -quit)" ]; then
    echo "Building trapgate (minutes the first time)..." >&2
    [ -x "$venv/bin/maturin" ] || "$venv/bin/pip" install -q 'maturin>=1.9.4,<2'
    started=$(mktemp)
    VIRTUAL_ENV=$venv "$venv/bin/maturin" develop --release --quiet
    mv "$started" "$stamp"
fi
exec "$venv/bin/trapgate" boot "$@"
