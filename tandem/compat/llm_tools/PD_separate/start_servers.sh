#!/bin/sh
# Start what RANK_TABLE_FILE_PATH says this process is: the documents' command, over the installed tandem.
if ! command -v tandem >/dev/null 2>&1; then
    echo "start_servers.sh: tandem is not on the PATH; activate the environment it is installed in" >&2
    exit 127
fi
exec tandem serve --from-rank-table "$@"
