"""`python -m regions.cli`: what the supervisor starts, without a script in between."""

from regions.cli import main

if __name__ == "__main__":
    main()
