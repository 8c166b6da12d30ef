"""The `ring` command. Importing everything takes a moment; Ctrl-C in it must not show a traceback either."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from ring.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
