"""`python -m rayward`."""

from rayward.application import main

if __name__ == "__main__":
    main()
