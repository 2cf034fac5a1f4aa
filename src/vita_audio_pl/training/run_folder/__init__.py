"""What a run leaves on disk for whoever comes after it: where things stand, what it is, what made it."""
