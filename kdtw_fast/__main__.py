"""`python -m kdtw_fast` is `kdtw`."""

from kdtw_fast.cli import main

if __name__ == "__main__":
    main()
