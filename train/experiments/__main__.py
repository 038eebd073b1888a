import sys

from train.experiments.harness.main import main

sys.exit(main())
