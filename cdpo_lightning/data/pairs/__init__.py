"""Pairs of responses with their scores: the table, the rows of a batch, the labels that a method fits."""
