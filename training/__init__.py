"""What a training recipe needs around the network and its data."""
