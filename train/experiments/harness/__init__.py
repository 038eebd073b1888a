"""What all experiments share: options, networks, rows, statistics and drawing."""
