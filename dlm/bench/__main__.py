"""`python -m dlm.bench`."""

from dlm.bench import main

if __name__ == "__main__":
    main()
