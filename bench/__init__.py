"""Speed, each row against a floor measured alternately in the same run. `python -m bench [ROW …]`, or `make bench`."""
