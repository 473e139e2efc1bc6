"""The nine benchmarks through lm-eval: which (benchmarks), their data (local, yamls), the model
with its traces (adapter, asked), code that a model wrote (sandbox), and the run of all (run)."""
