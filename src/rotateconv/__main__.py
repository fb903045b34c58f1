"""`python -m rotateconv`: the command line, as `torchrun -m rotateconv train` starts it."""

from rotateconv.lab.cli import main

main()
