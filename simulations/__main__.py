"""``python -m simulations``."""

if __name__ == "__main__":
    # Guarded and late: worker processes import the main module of the process that starts them.
    import sys

    from simulations.cli import main

    sys.exit(main())
