"""`python -m mpidl` is `mpidl`."""

import sys

from mpidl.cli.main import main

sys.exit(main())
