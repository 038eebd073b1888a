"""Draw the figure and write the verdict of finished experiments, without JAX.

python -m train.experiments.show FOLDER [FOLDER ...]
"""

import sys

from train.experiments.harness.show import main

if __name__ == "__main__":
    main(sys.argv[1:])
