#!/usr/bin/env bash
# One node's part of a run over several nodes: starts it, or goes on with it, and passes SIGTERM on.
#
#   NRT_RUN=/shared/runs/first NRT_NODES=2 NRT_NODE_RANK=0 NRT_HEAD=node-0 \
#     bash recipes/cluster/node.sh recipe.yaml [--flags of nrt train]
#
# NRT_RUN        the run folder, on a disk that all nodes share (locks, rename: NFS 4, Lustre, ...)
# NRT_NODES      how many nodes; NRT_NODE_RANK which of them, from 0 (under SLURM: known)
# NRT_HEAD       host name or address of node 0; NRT_PORT a free port there (29500)
# NRT_GPUS       GPUs, that is processes, of a node (8)
# NRT_ACCELERATE a file of recipes/accelerate (fsdp2.yaml)
#
# Exit code: 0 the run has ended; 143 start me again (a signal stopped it, or it broke off after a
# new checkpoint); 2 settings or data are wrong; anything else is the launcher's.
set -uo pipefail

run=${NRT_RUN:?the run folder, on a shared disk} nodes=${NRT_NODES:-1}
rank=${NRT_NODE_RANK:-${SLURM_NODEID:-0}} gpus=${NRT_GPUS:-8}
here=$(dirname "${BASH_SOURCE[0]}")

# Where a scheduler signals every process of a job, torch's agent kills its ranks 30 s after the
# first SIGTERM. A step and a checkpoint may take longer; the scheduler's own limit is enough.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-86400}

# The launchers make 1 of every exit code of a rank. One that refuses settings or data leaves a file.
told=$(mktemp -d) || exit
trap 'rm -rf "$told"' EXIT

newest() { find "$run" -maxdepth 1 -type d -name 'checkpoint-*' 2>/dev/null | sort -V | tail -n 1; }

asked=0 launcher=
# shellcheck disable=SC2329 # the trap calls it
stop() { # to the ranks alone: they save at the end of the step and leave, and their agent with them
  asked=1
  [ -z "$launcher" ] || pkill -TERM -P "$launcher" || kill -TERM "$launcher" 2>/dev/null
}
trap stop TERM

before=$(newest)
if [ -n "$before" ]; then
  set -- "$@" --resume
elif [ "$rank" -eq 0 ] && [ -f "$run/config.yaml" ]; then
  # Stopped before its first checkpoint: begin again. Whoever trains there now keeps the folder.
  flock --nonblock "$run/.lock" mv "$run" "$run.unsaved-$(date +%s)"
fi

# The file of the one rank that needs no agent; torch's agent names its ranks' own, in --log_dir.
TORCHELASTIC_ERROR_FILE=$told/error.json \
accelerate launch --config_file "${NRT_ACCELERATE:-$here/../accelerate/fsdp2.yaml}" \
  --num_machines "$nodes" --num_processes $((nodes * gpus)) --machine_rank "$rank" \
  --main_process_ip "${NRT_HEAD:-127.0.0.1}" --main_process_port "${NRT_PORT:-29500}" \
  --log_dir "$told" \
  -m native_reasoning.cli train "$@" --out "$run" &
launcher=$!

until wait "$launcher"; code=$?; ! kill -0 "$launcher" 2>/dev/null; do :; done # a trap ends a wait

[ "$code" -ne 0 ] || exit 0
[ -z "$(find "$told" -name error.json)" ] || exit 2
[ "$asked" -eq 0 ] && [ "$(newest)" = "$before" ] || exit 143
exit "$code"
