"""`python -m mica`, the same as the command `mica`."""

from mica.cli.main import main

if __name__ == "__main__":
    main()
