"""The command lines that an installation has; tools/ has the same for a clone."""
