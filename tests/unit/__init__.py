"""Claims about one module at a time: no sockets, no files."""
