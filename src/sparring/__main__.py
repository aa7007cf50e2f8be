"""`python -m sparring`: the command `sparring`."""

from .cli import main

if __name__ == "__main__":
    main()
