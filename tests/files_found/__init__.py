"""What people have, in one table: a file, a key or a format, and what happens to it. docs/own-data.md prints the table,
and `test_files_found.py` does to real files what each of its rows says."""
