import sys

from train.cli import main

sys.exit(main(["experiments", *sys.argv[1:]]))
