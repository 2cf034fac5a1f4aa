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
echo "Installing$missing with apt-get"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# shellcheck disable=SC2086 # one word a package
$as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
