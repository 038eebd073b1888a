import sys

from train.experiments.main import main

sys.exit(main())
