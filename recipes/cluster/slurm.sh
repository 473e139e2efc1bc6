#!/usr/bin/env bash
# A run on 2 nodes of 8 GPUs under SLURM, which goes on after preemption and after its time is up.
#
#   sbatch recipes/cluster/slurm.sh recipes/tulu3-llama3.1-8b.yaml --gradient-accumulation-steps 4 \
#     --steps-per-generation 16
#
# Edit the lines below and NRT_RUN for your cluster; submit from a shared folder with this repository.
# Not run under SLURM here: tests/slow/test_cluster.py runs it with stand-ins for srun, scancel, scontrol.

#SBATCH --job-name=nrt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1        # a launcher for each node; it starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append         # one log for all attempts
#SBATCH --output=%x-%j.log
#SBATCH --signal=B:USR1@900        # to this script, 15 minutes before the end: more than a step and
                                   # a checkpoint take. A partition's GraceTime should be as long
set -uo pipefail

export NRT_RUN=${NRT_RUN:-$PWD/runs/$SLURM_JOB_NAME-$SLURM_JOB_ID} # a requeued job keeps its number
export NRT_NODES=$SLURM_NNODES NRT_GPUS=${NRT_GPUS:-${SLURM_GPUS_ON_NODE:-8}}
export NRT_PORT=${NRT_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
NRT_HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export NRT_HEAD
# sbatch copies this script away, so that it cannot look beside itself
scripts=${NRT_SCRIPTS:-$SLURM_SUBMIT_DIR/recipes/cluster}

# USR1: time is nearly up (or, with PreemptParameters=send_user_signal, a preemption began). It comes
# to this script alone, which tells the steps and asks for the job to be queued again.
# TERM: the job is preempted or cancelled; SLURM tells the steps as well, and queues a preempted job
# again by itself (PreemptMode=REQUEUE), if this script is still there when the grace time ends.
again=0 told=0
trap 'again=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # without --full not to this script
trap 'told=1' TERM

# One node that leaves early is not to kill another that still writes; one that hangs is.
srun --kill-on-bad-exit=0 --wait=600 bash "$scripts/node.sh" "$@" &
step=$!
until wait "$step"; code=$?; ! kill -0 "$step" 2>/dev/null; do :; done # a trap ends a wait

[ "$code" -ne 0 ] || exit 0
[ "$told" -eq 0 ] || sleep "${NRT_GRACE:-900}"
[ "$code" -ne 143 ] || again=1 # what node.sh says of a run that should go on
if [ "$told" -eq 0 ] && [ "$again" -eq 1 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
