"""What is wrong with labelled records: counted, and mended by a named policy."""
