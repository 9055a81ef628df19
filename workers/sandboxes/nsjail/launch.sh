# Turns into the sandbox's supervisor after joining its cgroups. Arguments: how many cgroups,
# the file of each to write to, then the program and its arguments.
#
# Done here and not by the worker: a process that moves itself ("0") skips the lock over all
# process groups, which costs the worker's way up to 20 ms.
set -e
count=$1
shift
while [ "$count" -gt 0 ]; do
    echo 0 >"$1"
    shift
    count=$((count - 1))
done
# When the host runs out of memory, sandboxes go before workers. Some containers forbid it.
{ echo 1000 >/proc/self/oom_score_adj; } 2>/dev/null || :
exec "$@"
