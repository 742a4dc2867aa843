"""The command ``prefcli``, also as ``python -m prefcli``; ``torchrun -m prefcli`` starts it on several processes."""

import sys


def main() -> None:
    """Run the command; Ctrl-C ends it with one line even while its modules are being imported."""
    try:
        from prefcli.cli.main import main as run

        run()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
