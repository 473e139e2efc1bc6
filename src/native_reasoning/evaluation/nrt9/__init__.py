"""Tasks of the suite that lm-eval lacks, as its task files, and their metrics (marks)."""
