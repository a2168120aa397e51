# Sourced by `demo`, `test` and `docs`: giraffe and its pinned packages in `.venv`, installed when needed.
#
#   prepare ""      what running giraffe needs
#   prepare "dev"   that, and what the tests need
#   prepare "docs"  that, and what builds the documentation
#
# A stamp in `.venv` holds the digest of pyproject.toml, constraints.txt and the folder's path;
# while it matches, nothing is installed. Set PYTHON to choose the interpreter of a new `.venv`.

say() { printf '\n── %s\n' "$*" >&2; }

stop() {
    printf 'error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf '\nhint: %s\n' "$2" >&2
    exit 1
}

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if is_recent "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    stop "no Python 3.11 or newer: ${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>&1 || true)" \
        "install one (Debian 12 and Ubuntu 24.04 have it: apt install python3 python3-venv), or PYTHON=/path/to/python3.12 $0"
}

make_venv() {
    local python
    python=$(find_python)
    say "making .venv with $python ($("$python" -V))"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv .venv
    elif "$python" -m pip --version >/dev/null 2>&1; then
        # Debian without python3-venv: pip alone can bring virtualenv, outside the system's packages.
        local borrowed
        borrowed=$(mktemp -d)
        "$python" -m pip install --quiet --target "$borrowed" virtualenv
        PYTHONPATH="$borrowed" "$python" -m virtualenv --quiet .venv
        rm -rf "$borrowed"
    else
        stop "$python has neither venv nor pip" "apt install python3-venv, then run $0 again"
    fi
}

digest() {
    .venv/bin/python - <<'PYTHON'
import hashlib, os, pathlib
parts = [pathlib.Path(name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\0".join([*parts, os.getcwd().encode()])).hexdigest())
PYTHON
}

holds() { [ "$(cat ".venv/giraffe-$1" 2>/dev/null)" = "$2" ]; }

prepare() {
    local extra=$1 wanted
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || make_venv
    is_recent .venv/bin/python ||
        stop ".venv holds $(.venv/bin/python -V), giraffe needs Python 3.11 or newer" \
            "move .venv away and run $0 again"
    wanted=$(digest)
    if holds "${extra:-run}" "$wanted" || { [ -z "$extra" ] && { holds dev "$wanted" || holds docs "$wanted"; }; }; then
        say "giraffe is installed in .venv; nothing has changed since"
    else
        say "installing giraffe and its pinned packages into .venv (torch is the large one)"
        # What is imported is compiled then: 15,000 files at once take a minute of one core.
        .venv/bin/python -m pip install --disable-pip-version-check --no-compile \
            -c constraints.txt -e ".${extra:+[$extra]}" >&2
        # The fast tokenizer where there is a wheel of it; without it packing is slower, not other.
        .venv/bin/python -m pip install --disable-pip-version-check --quiet --only-binary :all: \
            -c constraints.txt fastokens orjson >&2 || say "no wheel of fastokens: packing goes on with tokenizers"
        printf '%s\n' "$wanted" >".venv/giraffe-${extra:-run}"
    fi
    # No network after installation, and one thread count, on which bits depend.
    export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(.venv/bin/python -c 'import os; print(os.cpu_count())')}
}
