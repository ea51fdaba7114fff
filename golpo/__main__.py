"""`python -m golpo`, and `torchrun -m golpo`."""

from golpo.cli import main

if __name__ == "__main__":
    main()
