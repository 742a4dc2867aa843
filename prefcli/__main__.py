"""``python -m prefcli`` is the command ``prefcli``; ``torchrun -m prefcli`` starts it on several processes."""

from prefcli.cli.main import main

if __name__ == "__main__":
    main()
