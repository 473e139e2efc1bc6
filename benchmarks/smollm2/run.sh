#!/usr/bin/env bash
# A real 135 M chat model on real word problems: 30 steps, stopped once by SIGTERM and resumed.
#
#   benchmarks/smollm2/run.sh MODEL SVAMP.jsonl SCRATCH
#
# MODEL: the folder made by ../shared/tools/smollm2.py. SVAMP.jsonl: ../shared/data/svamp/all.jsonl;
# its first 250 rows train, its last 50 are held out. SCRATCH: a new folder for the run.
# Two threads at most; about 12 minutes on one core of the machine named in results.json.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=$(realpath "$1"); data=$(realpath "$2"); scratch=$3
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p "$scratch"; cd "$scratch"
head -250 "$data" > train.jsonl
tail -50 "$data" > test.jsonl
nrt train --model "$model" --data train.jsonl --eval-data test.jsonl \
    --prompt-column Body+Question --answer-column Answer --out runs/svamp \
    --max-steps 30 --per-device-train-batch-size 4 \
    --gradient-accumulation-steps 1 --num-generations 4 \
    --max-trace-length 48 --max-answer-length 16 --learning-rate 2e-5 --warmup-steps 0 \
    --format-warmup-steps 8 --save-steps 10 --eval-samples 24 --per-device-eval-batch-size 12 \
    --use-cpu &
run=$!
until [ "$(grep -c uplift runs/svamp/metrics.jsonl 2>/dev/null || true)" -ge 13 ] 2>/dev/null; do
    sleep 2
    kill -0 "$run" 2>/dev/null || break
done
kill -TERM "$run" || true
wait "$run" || echo "exit code $?"      # 143
nrt train --out runs/svamp --resume
python "$here/summarise.py" runs/svamp > "$here/results.json"
