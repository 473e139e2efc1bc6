"""``python -m native_reasoning.cli``, also under ``accelerate launch -m`` and ``torchrun -m``."""

import sys

from native_reasoning.cli import main

if __name__ == "__main__":
    sys.argv[0] = "nrt"  # as config.yaml and a report show the command
    sys.exit(main())
