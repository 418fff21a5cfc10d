# Sourced by ./quickstart and ./check: a virtual environment in .venv with tandem and, for tests, its test extra.
#
# torch comes first and by itself: without an accelerator its default build for Linux would pull gigabytes of CUDA
# libraries that nothing here would use.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
torch_requirement=$(sed -n 's/^ *"\(torch[><=].*\)",$/\1/p' "$root/pyproject.toml")
cpu_index=${TANDEM_TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer and found none; install one, or name it: PYTHON=/path/to/python3 $0"
}

has_accelerator() {
    nvidia-smi -L >/dev/null 2>&1 || npu-smi info -l >/dev/null 2>&1
}

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check "$@"
}

install_torch() {
    "$venv/bin/python" -c 'import torch' 2>/dev/null && return
    echo "installing torch ..."
    if has_accelerator; then
        pip install -q "$torch_requirement" || fail "cannot install torch; see the message above"
        return
    fi
    # A build that lies in a folder of pip's own settings (find-links) is taken first; its dependencies come with tandem.
    pip install -q --no-index --no-deps "$torch_requirement" 2>/dev/null && return
    pip install -q --retries 1 --timeout 20 --index-url "$cpu_index" "$torch_requirement" ||
        fail "cannot install torch's CPU build from $cpu_index; set TANDEM_TORCH_CPU_INDEX to an index that has it, or install torch into $venv yourself"
}

# ensure_environment WHAT: WHAT is the requirement to install from this folder: `.`, `.[test]` or `.[test,nixl]`.
ensure_environment() {
    local what=$1 mark=$venv/.installed state
    state=$(cat "$root/pyproject.toml" - <<<"$root" | cksum)
    # Whatever begins with WHAT has all that WHAT has.
    [[ $(cat "$mark" 2>/dev/null) == "$state ${what%]}"* ]] && return
    # The mark is written last, so an installation that was interrupted is done again.
    rm -f "$mark"
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        local python
        python=$(find_python) || exit 1
        echo "creating $venv ..."
        "$python" -m venv --clear "$venv" || fail "cannot create $venv; on Debian and Ubuntu: apt install python3-venv"
    fi
    install_torch
    echo "installing tandem and what it needs ..."
    (cd "$root" && pip install -q -e "$what") || fail "the installation failed; see the message above"
    echo "$state $what" >"$mark"
}
