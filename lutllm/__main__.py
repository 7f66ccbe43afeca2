"""`python -m lutllm` is the same as `lutllm`."""

import sys

from lutllm.cli import main

sys.exit(main())
