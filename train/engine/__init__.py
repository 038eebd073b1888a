"""What trains: the network, its compiled functions, the loop over epochs."""
