"""The command lines of an installed package. The scripts in tools/ run the same code in a clone."""
