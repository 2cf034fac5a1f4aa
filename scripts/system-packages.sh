#!/bin/sh
# Install missing Debian packages: each argument is PACKAGE, or PACKAGE:MODULE where a Python module shows that it is there.
set -eu
missing=""
for item in "$@"; do
    package=${item%%:*}
    case "$item" in
        *:*) python3 -c "import ${item#*:}" 2>/dev/null || missing="$missing $package" ;;
        *) command -v "$package" >/dev/null 2>&1 || missing="$missing $package" ;;
    esac
done
[ -z "$missing" ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Please install:$missing (no apt-get on this machine to do it for you)." >&2
    exit 1
fi
as_root=""
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo "Please install as root:$missing (this user has no sudo)." >&2
        exit 1
    fi
    as_root=sudo
fi
# apt-get waits for dpkg's lock if asked to, but never for those of its lists and archives: so each call is tried again.
patience=600
apt() {
    waited=0
    until told=$($as_root env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get "$@" 2>&1 >/dev/null); do
        case "$told" in
            *"Could not get lock"* | *"Unable to lock"* | *"Unable to acquire"*) ;;
            *) waited=$patience ;; # nothing to wait for
        esac
        if [ "$waited" -ge "$patience" ]; then
            printf '%s\n' "$told" >&2
            echo "Please install:$missing (apt-get $1 failed, see above)." >&2
            exit 1
        fi
        if [ "$waited" -eq 0 ]; then
            holder=$(printf '%s\n' "$told" | sed -n 's/.*held by process \(.*\)$/ (process \1)/p' | head -n 1)
            echo "Another program$holder is installing packages; waiting for it, at most $((patience / 60)) minutes"
        fi
        sleep 5
        waited=$((waited + 5))
    done
}

echo "Installing$missing with apt-get"
apt update -qq
# shellcheck disable=SC2086 # one word a package
apt install -y -qq --no-install-recommends $missing
