"""The program `rotateconv`, and `python -m rotateconv`, as `torchrun -m rotateconv train` starts it."""

import sys


def main() -> None:
    """Run the command line and exit: 0 done, 2 the user's mistake, 1 ours or the machine's, 130 interrupted."""
    try:
        # Inside, since a Ctrl-C while modules load is an end like any other: nothing is imported before this line.
        try:
            from rotateconv.lab.cli import main as run
        except (ImportError, RuntimeError) as error:
            print(f"the commands need more packages ({error}): pip install 'rotateconv[lab]'", file=sys.stderr)
            sys.exit(2)
        run()
    except KeyboardInterrupt:
        print("interrupted: nothing was begun", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
