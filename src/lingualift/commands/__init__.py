"""What the command line and scripts call alike, one verb a file."""
