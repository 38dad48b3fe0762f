"""Rows of files and hub data sets, and checked access to their columns."""
