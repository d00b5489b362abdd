"""Runs the command line: `python -m streamavg`."""

from streamavg.cli import main

if __name__ == "__main__":
    main()
