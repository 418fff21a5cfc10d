#!/bin/bash
# What an image of tandem runs: the command that is given, as process 1, so that signals are its own.
#
# Where CANN is there, its paths are set first; it wants a shell for that.
for paths in /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/nnal/atb/set_env.sh; do
    [ ! -f "$paths" ] || . "$paths"
done
exec "$@"
