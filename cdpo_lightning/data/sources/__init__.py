"""Data sets: from files, folders or the hub to records."""
