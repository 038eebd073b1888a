import sys

from train.cli import main
from train.distributed.cores import count_cores_as_devices

count_cores_as_devices()
sys.exit(main(["experiments", *sys.argv[1:]]))
