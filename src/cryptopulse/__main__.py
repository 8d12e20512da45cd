"""`python -m cryptopulse`: the same as the command `cryptopulse`."""

from cryptopulse.cli import main

if __name__ == "__main__":
    main()
