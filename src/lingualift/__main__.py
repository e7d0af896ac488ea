"""`lingualift` and `python -m lingualift`."""

from functools import partial

from lingualift.processes import run_command

main = partial(run_command, "lingualift.cli")

if __name__ == "__main__":
    main()
