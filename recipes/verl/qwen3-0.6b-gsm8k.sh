#!/usr/bin/env bash
# Qwen3-0.6B learns to think about grade-school sums, inside verl 0.9.1.
#
# Paper:     Native Reasoning Training, arXiv 2602.11549 (reward nrt-ws); not one of its experiments
# Hardware:  one node with GPUs that verl and vLLM run on; this recipe has not been run
# Minutes:   not measured
# Expected:  not measured
#
# bash recipes/verl/qwen3-0.6b-gsm8k.sh [more of verl's settings]      (from the repository)
#
# docs/verl.md says what each line is for and how to write train.parquet and val.parquet.
set -euo pipefail

# n=9: 8 traces of each prompt and its empty trace; response length: trace, tag and answer together
exec python3 -m verl.trainer.main_ppo \
  trainer.v1.trainer_mode=native_reasoning \
  actor_rollout_ref.rollout.agent.default_agent_loop=native_reasoning \
  actor_rollout_ref.actor.policy_loss.loss_mode=native_reasoning/nrt-ws \
  actor_rollout_ref.rollout.n=9 \
  actor_rollout_ref.rollout.temperature=1.0 \
  algorithm.adv_estimator=grpo \
  data.train_files=train.parquet \
  data.val_files=val.parquet \
  data.train_batch_size=16 \
  data.max_prompt_length=512 \
  data.max_response_length=320 \
  reward.custom_reward_function.path=recipes/verl/exact_match.py \
  actor_rollout_ref.model.path=Qwen/Qwen3-0.6B \
  actor_rollout_ref.actor.optim.lr=2e-6 \
  actor_rollout_ref.actor.ppo_mini_batch_size=16 \
  actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=9 \
  actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=9 \
  actor_rollout_ref.rollout.name=vllm \
  actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
  actor_rollout_ref.rollout.gpu_memory_utilization=0.5 \
  trainer.n_gpus_per_node=1 \
  trainer.nnodes=1 \
  trainer.total_epochs=1 \
  trainer.logger=console \
  "$@"
