#!/usr/bin/env bash
# Make the virtual environment $1 with the first Python of version 3.11 or later, and install
# into it what pyproject.toml asks for, in the versions that constraints.txt pins.
set -euo pipefail
venv=$1

# Two `make` at once: the second waits, and then finds everything done.
mkdir -p build
if command -v flock >/dev/null; then
    exec 9>build/.setup.lock
    flock 9
fi

modern='import sys, venv; sys.exit(sys.version_info < (3, 11))'
python=
for candidate in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c "$modern" 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "hop needs Python 3.11 or later with its venv module; none was found." >&2
    echo "Install one (Debian: apt-get install python3 python3-venv), or say PYTHON=/path/to/python." >&2
    exit 1
fi

# An environment that can be used is kept. Debian without python3-venv has no ensurepip.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$python" -c 'import ensurepip' 2>/dev/null && command -v apt-get >/dev/null; then
        bash "$(dirname "$0")/system.sh" python3-venv
    fi
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip install --quiet -c constraints.txt -e '.[dev]'
echo "$venv: $("$venv/bin/python" --version), $("$venv/bin/python" -m pip list 2>/dev/null | wc -l) packages"
