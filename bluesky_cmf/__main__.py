"""``python -m bluesky_cmf``: the same as the command ``bluesky-cmf``."""

from .cli import main

if __name__ == "__main__":
    main()
