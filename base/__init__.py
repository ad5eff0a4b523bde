"""What all else stands on: errors, files, flags, devices, and what must precede MXNet's import."""
