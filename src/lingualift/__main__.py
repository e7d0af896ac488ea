"""`python -m lingualift` is the command line."""

from lingualift.cli import main

if __name__ == "__main__":
    main()
