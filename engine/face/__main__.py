"""`python -m mim3d` is the command `mim3d`."""

import sys

from mim3d.engine.commands.cli import main

sys.exit(main())
