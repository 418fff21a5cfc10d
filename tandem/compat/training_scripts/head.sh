#!/bin/sh
# @SAYS@
#
@USAGE@
#
# Options of `tandem train` may follow, such as --plan, which shows every setting and where it comes from.
set -eu
SHELL_FOLDER=$(dirname "$(readlink -f "$0")")
root=$(dirname "$(dirname "$SHELL_FOLDER")")
if ! command -v tandem >/dev/null 2>&1; then
    echo "@NAME@: tandem is not on the PATH; activate the environment it is installed in" >&2
    exit 127
fi
