# What setup.sh and the install scripts share. Sourced by them; "$0" is the script that the user called.

fail() {
    echo "${0##*/}: $1" >&2
    exit 2
}

# Runs pip in .venv, whose messages are of interest only when it fails.
run_pip() {
    local messages
    if ! messages=$(.venv/bin/python -m pip --disable-pip-version-check --no-input --quiet "$@" 2>&1); then
        echo "$messages" >&2
        fail "pip could not $* (its messages are above)"
    fi
}

# One script at a time in this directory. A pip that outlives a killed script holds the lock too: it cannot write
# into a new .venv.
lock_checkout() {
    exec 9<.
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        echo "Waiting for another ${0##*/} or setup.sh in this directory."
        flock 9
    fi
}
