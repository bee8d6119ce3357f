#!/bin/sh
# Writes the files with hashes from pyproject.toml and deploy/constraints.txt. Needs uv (pip install uv).
#
#   sh deploy/lock.sh
set -eu
cd "$(dirname "$0")/.."
lock() {
    uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
        --custom-compile-command "sh deploy/lock.sh" -c deploy/constraints.txt "$@"
}
lock --extra postgres --extra mysql --extra ldap --extra mongo --extra watch --extra rest \
    --extra metrics --extra otel -o deploy/requirements.txt pyproject.toml
echo hatchling | lock -o deploy/requirements-build.txt -
