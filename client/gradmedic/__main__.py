"""`python -m gradmedic` is the `gradmedic` command."""

import sys

from gradmedic.cli import main

sys.exit(main())
