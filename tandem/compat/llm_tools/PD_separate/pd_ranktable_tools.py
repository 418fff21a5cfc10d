#!/usr/bin/env python3
"""Generate and merge rank tables: the documents' command, over the installed tandem."""

import sys

if __name__ == "__main__":
    try:
        from tandem.compat.pd_ranktable_tools import main
    except ModuleNotFoundError as error:
        sys.exit(f"pd_ranktable_tools.py: {sys.executable} lacks {error.name}; use the Python that has tandem")
    sys.exit(main())
