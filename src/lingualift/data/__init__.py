"""Rows: files and data sets of the hub as tables, tables as examples, and answers as files."""
